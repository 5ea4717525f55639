"""What measurements stand on: one machine, one preset, its model, and a timer; and one piece of a sweep."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from calibration.microbench import models
from calibration.microbench.device import Machine
from calibration.microbench.measurement import Measurement
from calibration.microbench.preset import Preset
from calibration.microbench.step_ops import StepPricer
from calibration.microbench.timer import CallTimer
from hw_profiles import catalog

if TYPE_CHECKING:
    from runtime.config.spec import ModelConfig
    from runtime.engine import Engine
    from runtime.trace import TraceRequest


@dataclass(frozen=True)
class Item:
    """One piece of the sweep. run gives its measurements; the last carries the item's own key, which is known
    before it runs, so that a resumed sweep skips what is on file. within_s: of a sweep; later it is not begun.
    weight: how long it takes, roughly, against the ops of one step."""

    key: str
    run: Callable[[], Iterator[Measurement]]
    within_s: float = math.inf
    weight: int = 1


class Workspace:
    """The one model that is in memory: two at true layer shapes would not fit."""

    def __init__(self) -> None:
        self._owner: Bench | None = None
        self._model: Any = None

    def model_of(self, bench: Bench) -> Any:
        """The bench's model of the preset's layers, with random weights; that of another bench is let go."""
        from runtime.models import build

        if self._owner is not bench:
            self.clear()
            self._model = build(bench.runtime_config, seed=bench.seed, device=bench.device, dtype=bench.dtype)
            self._owner = bench
        return self._model

    def clear(self) -> None:
        import torch

        self._owner = self._model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


SHORTEST_PROMPT, SHORTEST_OUTPUT = 4, 2  # tokens of the traffic (assumed)
IDLE_S = 1e4  # between bursts, on a clock that skips idle time: each burst runs out before the next


class Bench:
    """config: config.json of the preset's model, all layers."""

    def __init__(
        self,
        machine: Machine,
        preset: Preset,
        config: dict[str, Any],
        seed: int = 0,
        workspace: Workspace | None = None,
    ) -> None:
        import torch

        self.machine, self.preset, self.config, self.seed = machine, preset, config, seed
        self.workspace = workspace or Workspace()
        self.device = torch.device(machine.device)
        self.dtype = models.torch_dtype(machine)
        if machine.device == "cpu":
            torch.set_num_threads(machine.threads)
        torch.manual_seed(seed)

    @cached_property
    def timer(self) -> CallTimer:
        return CallTimer(self.device, self.preset.limits)

    @cached_property
    def pricer(self) -> StepPricer:
        spec = models.model_spec(models.cut_to(self.config, self.preset.layers), self.machine, self.preset.model)
        # The ops of one rank do not depend on the accelerator: any entry of the catalogue builds them.
        return StepPricer(spec, catalog.load(catalog.names()[0]))

    @cached_property
    def runtime_config(self) -> ModelConfig:
        return models.runtime_config(models.cut_to(self.config, self.preset.layers))

    @property
    def model(self) -> Any:
        return self.workspace.model_of(self)

    def engine(self, depth: int) -> Engine:
        """An engine of the first `depth` layers with room for every sequence of a step. It has a model of its own."""
        from runtime.engine import Engine, EngineConfig

        self.workspace.clear()
        p = self.preset
        per_sequence = -(-(p.longest_prompt + p.longest_output) // p.block_size)
        config = EngineConfig(
            num_blocks=p.max_sequences * per_sequence,
            block_size=p.block_size,
            num_snapshots=0,
            max_num_seqs=p.max_sequences,
            max_num_batched_tokens=p.max_step_tokens,
            prefix_caching=False,
        )
        cut = models.runtime_config(models.cut_to(self.config, depth))
        return Engine.build(cut, config, seed=self.seed, device=self.machine.device, dtype=self.dtype)

    def traffic(self, count: int, seed: int) -> list[TraceRequest]:
        """Requests in bursts of every size, so that steps of every batch size come by."""
        from runtime.trace import TraceRequest

        p = self.preset
        rng = np.random.default_rng(seed)
        bursts = rng.choice([1, 2, p.max_sequences // 4, p.max_sequences], count)
        prompts = np.rint(np.exp(rng.uniform(np.log(SHORTEST_PROMPT), np.log(p.longest_prompt), count))).astype(int)
        outputs = rng.integers(SHORTEST_OUTPUT, p.longest_output, count)
        starts = np.cumsum(np.concatenate(([0], rng.random(count - 1) * bursts[1:] < 1))) * IDLE_S
        return [TraceRequest(float(s), int(i), int(o)) for s, i, o in zip(starts, prompts, outputs, strict=True)]
