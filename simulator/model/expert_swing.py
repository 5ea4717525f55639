"""How far the experts of one drawn step lie from their mean time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from simulator.model.architecture import MoeSpec
from simulator.model.expert_load import SAMPLES, ExpertLoads, position
from simulator.model.moe import RankLoad

LoadsOf = Callable[[MoeSpec, float], tuple[RankLoad, ...]]
Price = Callable[[float, bool, LoadsOf], float]


class ExpertSwing:
    """Seconds of the experts under each draw over seconds under the mean of all, less 1, by token count.

    price: seconds of all routed experts of a step with so many tokens, in kernels of decode or of prefill, under
        given loads. Tables are filled at half powers of two as they are asked for; between them shares are linear.
    """

    def __init__(self, loads: Mapping[MoeSpec, ExpertLoads], price: Price) -> None:
        self._loads = loads
        self._price = price
        self._tables: dict[tuple[int, bool], list[float]] = {}

    def share(self, tokens: float, low_latency: bool, sample: int) -> float:
        """Of draw `sample`; the mean over all draws is 0."""
        bucket, part = position(tokens)
        low = self._table(bucket, low_latency)[sample]
        return low + part * (self._table(bucket + 1, low_latency)[sample] - low) if part else low

    def _table(self, bucket: int, low_latency: bool) -> list[float]:
        table = self._tables.get((bucket, low_latency))
        if table is None:
            tokens = float(round(2 ** (bucket / 2)))

            def seconds(sample: int) -> float:
                def loads_of(ffn: MoeSpec, tokens: float) -> tuple[RankLoad, ...]:
                    loads = self._loads[ffn]
                    return loads.loads(tokens, loads.draws(bucket)[:, sample])

                return self._price(tokens, low_latency, loads_of)

            drawn = [seconds(sample) for sample in range(SAMPLES)]
            mean = sum(drawn) / SAMPLES
            table = self._tables[bucket, low_latency] = [each / mean - 1 for each in drawn]
        return table
