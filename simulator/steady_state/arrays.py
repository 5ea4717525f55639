"""Arrays over (points, draws), and values of a curve at a place on its grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.model.arrays import Floats


@dataclass(frozen=True)
class Place:
    """Where values lie on a grid, for linear interpolation: beyond the ends the last piece goes on.

    low: [points, draws] index of the node below. share: [points, draws] of the node above it.
    """

    low: NDArray[np.intp]
    share: Floats

    @classmethod
    def on(cls, grid: Floats, values: Floats, *, beyond: bool = True) -> Place:
        """grid: [points, 1, nodes], rising (nodes may repeat at its end). beyond: whether the last piece goes on.

        >>> Place.on(np.array([[[0.0, 1.0, 3.0]]]), np.array([[2.0]])).share.item()
        0.5
        """
        last = grid.shape[-1] - 1
        if last == 0:
            return cls(np.zeros(values.shape, dtype=np.intp), np.zeros(values.shape))
        low = np.clip((grid <= values[..., None]).sum(axis=-1) - 1, 0, last - 1)
        spread = np.broadcast_to(grid, (*values.shape, last + 1))
        left = np.take_along_axis(spread, low[..., None], axis=-1)[..., 0]
        right = np.take_along_axis(spread, low[..., None] + 1, axis=-1)[..., 0]
        share = np.where(right > left, (values - left) / np.maximum(right - left, 1e-12), 1.0)
        return cls(low, np.maximum(share, 0.0) if beyond else np.clip(share, 0.0, 1.0))

    def of(self, curve: Floats) -> Floats:
        """curve: [points, draws or 1, nodes] -> [points, draws]; [points, draws or 1, nodes, more] -> [.., more]."""
        if curve.shape[2] == 1:
            return np.broadcast_to(curve[:, :, 0], (*self.low.shape, *curve.shape[3:]))
        more = (1,) * (curve.ndim - 3)
        curve = np.broadcast_to(curve, (*self.low.shape, *curve.shape[2:]))
        low = self.low.reshape(*self.low.shape, 1, *more)
        below = np.take_along_axis(curve, low, axis=2)[:, :, 0]
        above = np.take_along_axis(curve, low + 1, axis=2)[:, :, 0]
        return below + (above - below) * self.share.reshape(*self.share.shape, *more)
