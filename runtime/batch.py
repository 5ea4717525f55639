"""One step's tokens, flat, and the index tensors that say where everything is read and written.

Decode sequences (one new token) come first, then prefill chunks, so that each attention kernel gets a
contiguous run of rows. All integers are int32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from runtime.cache import SequenceInput
from runtime.config.spec import CompressedAttention, ModelConfig

Array = np.ndarray


@dataclass(frozen=True)
class SequenceRun:
    """A contiguous run of sequences; rows and sequence numbers count from its start."""

    rows: slice  # of the flat batch
    token_seq: Tensor  # [t] sequence of each token
    positions: Tensor  # [t]
    cu_seqlens: Tensor  # [b + 1]
    past: Tensor  # [b]
    context_lens: Tensor  # [b] past plus new tokens
    slots: Tensor  # [b]
    block_table: Tensor  # [b, max_blocks]
    max_new: int  # longest chunk


@dataclass(frozen=True)
class Compression:
    """What a compressor of one ratio does in this step."""

    ratio: int
    entry_seq: Tensor  # [E] sequences of the entries that close
    entry_index: Tensor  # [E] their number within the sequence
    entry_positions: Tensor  # [E] position of their first token, which RoPE uses
    entry_rows: Tensor  # [E] rows of the flattened entry pool; -1: not closed, do not store
    state_rows: Tensor  # [T] rows of the flattened state pool; -1: not among the latest tokens
    visible: Tensor  # [T] entries each token may read
    max_visible: int


@dataclass(frozen=True)
class StepBatch:
    token_ids: Tensor  # [T]
    positions: Tensor  # [T]
    whole: SequenceRun
    decode: SequenceRun | None
    prefill: SequenceRun | None
    block_rows: Tensor  # [T] rows of flattened [blocks, block_size] pools
    window_rows: Tensor  # [T] rows of the flattened window pool to write before attention (decode), else -1
    late_window_rows: Tensor  # [T] the same, to write after attention (prefill)
    last_rows: Tensor  # [sequences] row of each input's last token, in the order of the inputs
    compressions: tuple[Compression, ...]
    buffer: Tensor  # flat int32: all of the above are views of it, at places that depend on shapes alone

    def compression(self, ratio: int) -> Compression:
        return next(c for c in self.compressions if c.ratio == ratio)


@dataclass(frozen=True)
class FixedShape:
    """A decode batch of constant shapes, as a CUDA graph needs; rows beyond the inputs write nothing."""

    num_sequences: int
    max_blocks: int


# One token on block and slot 0, which writes nothing.
PADDING = SequenceInput((0,), 0, (0,), 0)


# Room for a step's index tensors, in items: at most 15 a token and 20 a sequence, two block tables, and 3 for the
# alignment of each of some 40 tensors; a little more of each.
ITEMS, TABLES, ALIGNED = 24, 3, 256


class _Arena:
    """Index tensors gathered on the host, to cross to the device in one copy."""

    ALIGNMENT = 4  # 16 bytes, which kernels like

    def __init__(self, capacity: int, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self._host = torch.empty(capacity, dtype=torch.int32, pin_memory=cuda)
        self._numpy = self._host.numpy()
        self._device = torch.empty(capacity, dtype=torch.int32, device=device) if cuda else self._host
        self._used = 0

    def put(self, values: Array) -> Tensor:
        """The place of these values on the device; they arrive with `sent`."""
        start, end = self._used, self._used + values.size
        self._numpy[start:end] = values.reshape(-1)
        self._used = -(-end // self.ALIGNMENT) * self.ALIGNMENT
        return self._device[start:end].view(values.shape)

    def sent(self) -> Tensor:
        """Everything put, on the device."""
        used = self._device[: self._used]
        if self._device is not self._host:
            used.copy_(self._host[: self._used], non_blocking=True)
        return used


@dataclass(frozen=True)
class _Layout:
    """The step on the host: sequences in batch order, one item a sequence or one a token."""

    lengths: Array
    past: Array
    slots: Array
    live: Array  # not padding
    table: Array  # [sequences, max_blocks]
    starts: Array  # [sequences + 1] first row of each
    token_seq: Array
    positions: Array
    block_size: int
    arena: _Arena

    def tensor(self, values: Array) -> Tensor:
        return self.arena.put(values)

    def ring_rows(self, size: int) -> Array:
        """[T] rows of a flattened [slots, size] ring for the latest tokens of each sequence, else -1."""
        seq, position = self.token_seq, self.positions
        latest = self.live[seq] & (position >= (self.past + self.lengths)[seq] - size)
        return np.where(latest, self.slots[seq] * size + position % size, -1)

    def pool_rows(self, seq: Array, index: Array, per_block: int) -> Array:
        """Rows of a flattened [blocks, per_block] pool for item `index` of sequence `seq`."""
        block = self.table[seq, np.minimum(index // per_block, self.table.shape[1] - 1)]
        return np.where(self.live[seq], block * per_block + index % per_block, -1)

    def run(self, first: int, last: int) -> SequenceRun:
        rows = slice(int(self.starts[first]), int(self.starts[last]))
        return SequenceRun(
            rows=rows,
            token_seq=self.tensor(self.token_seq[rows] - first),
            positions=self.tensor(self.positions[rows]),
            cu_seqlens=self.tensor(self.starts[first : last + 1] - self.starts[first]),
            past=self.tensor(self.past[first:last]),
            context_lens=self.tensor((self.past + self.lengths)[first:last]),
            slots=self.tensor(self.slots[first:last]),
            block_table=self.tensor(self.table[first:last]),
            max_new=int(self.lengths[first:last].max()),
        )

    def compression(self, ratio: int, windows: int, fixed: bool) -> Compression:
        """Entries of `ratio` tokens that close in this step; `windows` = 2 when they overlap.

        `fixed`: one row a (decode) sequence, stored only where its entry does close.
        """
        first, after = self.past // ratio, (self.past + self.lengths) // ratio
        if fixed:
            seq = np.arange(len(self.past))
            index, closed = first, after > first
        else:
            counts = np.where(self.live, after - first, 0)
            seq = np.repeat(np.arange(len(self.past)), counts)
            index = first[seq] + np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            closed = np.ones(len(seq), bool)
        per_block = self.block_size // ratio
        visible = (self.positions + 1) // ratio
        return Compression(
            ratio=ratio,
            entry_seq=self.tensor(seq),
            entry_index=self.tensor(index),
            entry_positions=self.tensor(index * ratio),
            entry_rows=self.tensor(np.where(closed, self.pool_rows(seq, index, per_block), -1)),
            state_rows=self.tensor(self.ring_rows(windows * ratio)),
            visible=self.tensor(visible),
            max_visible=self.table.shape[1] * per_block if fixed else int(visible.max()),
        )


def _lay_out(
    sequences: Sequence[SequenceInput], num_live: int, block_size: int, width: int, device: torch.device
) -> _Layout:
    lengths = np.array([len(s.token_ids) for s in sequences], np.int64)
    past = np.array([s.past for s in sequences], np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    token_seq = np.repeat(np.arange(len(sequences)), lengths)
    table = np.zeros((len(sequences), width), np.int64)
    for row, sequence in enumerate(sequences):
        assert len(sequence.block_ids) * block_size >= sequence.past + lengths[row], "blocks missing"
        table[row, : len(sequence.block_ids)] = sequence.block_ids
    capacity = ITEMS * (len(token_seq) + len(sequences)) + TABLES * table.size + ALIGNED
    return _Layout(
        lengths=lengths,
        past=past,
        slots=np.array([s.slot for s in sequences], np.int64),
        live=np.arange(len(sequences)) < num_live,
        table=table,
        starts=starts,
        token_seq=token_seq,
        positions=past[token_seq] + np.arange(starts[-1]) - starts[token_seq],
        block_size=block_size,
        arena=_Arena(capacity, device),
    )


def build_batch(
    inputs: Sequence[SequenceInput],
    config: ModelConfig,
    block_size: int,
    device: torch.device,
    fixed: FixedShape | None = None,
) -> StepBatch:
    """Lay out one step. Without inputs it is one dummy sequence that writes nothing."""
    order = sorted(range(len(inputs)), key=lambda i: len(inputs[i].token_ids) > 1)  # stable: decode first
    padding = fixed.num_sequences - len(inputs) if fixed else int(not inputs)
    sequences = [inputs[i] for i in order] + [PADDING] * padding
    width = fixed.max_blocks if fixed else max(len(s.block_ids) for s in sequences)
    layout = _lay_out(sequences, len(inputs), block_size, width, device)
    tensor, token_seq, positions = layout.tensor, layout.token_seq, layout.positions
    num_decode = int((layout.lengths == 1).sum())
    last_rows = np.empty(len(inputs), np.int64)
    last_rows[order] = layout.starts[1 : len(inputs) + 1] - 1
    attention = config.attention
    window_rows = np.full(len(token_seq), -1)
    compressions: list[Compression] = []
    if isinstance(attention, CompressedAttention):
        window_rows = layout.ring_rows(attention.window)
        if "sparse" in config.attention_kinds:
            compressions.append(layout.compression(attention.sparse_ratio, 2, fixed is not None))
        if "heavy" in config.attention_kinds:
            compressions.append(layout.compression(attention.heavy_ratio, 1, fixed is not None))
    decoding = token_seq < num_decode
    return StepBatch(
        token_ids=tensor(np.concatenate([np.array(s.token_ids, np.int64) for s in sequences])),
        positions=tensor(positions),
        whole=layout.run(0, len(sequences)),
        decode=layout.run(0, num_decode) if num_decode else None,
        prefill=layout.run(num_decode, len(sequences)) if num_decode < len(sequences) else None,
        block_rows=tensor(layout.pool_rows(token_seq, positions, block_size)),
        window_rows=tensor(np.where(decoding, window_rows, -1)),
        late_window_rows=tensor(np.where(decoding, -1, window_rows)),
        compressions=tuple(compressions),
        last_rows=tensor(last_rows),  # the last: as long as the inputs, not the shape
        buffer=layout.arena.sent(),
    )
