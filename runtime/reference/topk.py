"""The k best entries of each row, as attention wants them: a set in ascending index order."""

import torch
from torch import Tensor


def top_k(scores: Tensor, lengths: Tensor, k: int) -> Tensor:
    """Indices of the k largest among the first lengths[t] scores of each row; of equal scores the earlier
    wins.

    scores: [T, N] float32; lengths: [T] integers <= N. Returns [T, k] int32, ascending, padded with -1 at
    the end.
    """
    rows, columns = scores.shape
    index = torch.arange(columns, device=scores.device)
    visible = index[None, :] < lengths[:, None]
    masked = scores.masked_fill(~visible, float("-inf"))
    order = torch.argsort(masked, dim=-1, descending=True, stable=True)[:, :k]
    chosen = torch.where(visible.gather(1, order), order, columns)
    chosen = torch.nn.functional.pad(chosen, (0, k - chosen.shape[1]), value=columns)
    chosen = chosen.sort(-1).values
    return torch.where(chosen < columns, chosen, -1).int().view(rows, k)
