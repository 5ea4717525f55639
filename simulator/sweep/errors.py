"""The error of a sweep."""

from __future__ import annotations


class SweepError(ValueError):
    """Workers, a cluster or a store that cannot be had; the message says why and names the way out."""
