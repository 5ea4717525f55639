"""Calls of the runtime's ops inside a real step, kept with their inputs so that each can be timed alone.

The step itself makes inputs and cache state, so what is timed is what a server runs. Calls of one name and shape come
from different layers with weights of their own: timed in turn, they rotate data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from calibration.microbench.measurement import EngineStep

if TYPE_CHECKING:
    from runtime.cache import KVCache, SequenceInput
    from runtime.model_runner import ModelRunner

# Ops of `runtime.ops` that the simulator has an op for. `moe_align` and `store_rows` have none: their
# time shows in whole steps alone.
TIMED = (
    "linear",
    "rms_norm",
    "rope",
    "norm_rope_store",
    "compress",
    "indexer_scores",
    "top_k",
    "window_attention_prefill",
    "paged_attention_prefill",
    "window_attention_decode",
    "paged_attention_decode",
    "mhc_pre",
    "mhc_post",
    "router_gate",
    "grouped_gemm1",
    "grouped_gemm2_combine",
)


@dataclass(frozen=True)
class Captured:
    """All calls of one op with arguments of one form. arguments: of the first call, by position."""

    name: str
    arguments: tuple[Any, ...]
    calls: tuple[Callable[[], object], ...]


@contextmanager
def _recording() -> Iterator[list[tuple[str, tuple[Any, ...], Callable[[], object]]]]:
    """Calls made through `runtime.ops` while the context is open."""
    from runtime import ops

    found: list[tuple[str, tuple[Any, ...], Callable[[], object]]] = []
    plain = {name: getattr(ops, name) for name in TIMED}

    def recorder(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            found.append((name, (*args, *kwargs.values()), partial(plain[name], *args, **kwargs)))
            return plain[name](*args, **kwargs)

        return call

    try:
        for name in TIMED:
            setattr(ops, name, recorder(name))
        yield found
    finally:
        for name, function in plain.items():
            setattr(ops, name, function)


def capture(runner: ModelRunner, inputs: Sequence[SequenceInput]) -> list[Captured]:
    """Run one step and group its calls by op and form."""
    with _recording() as found:
        runner.step(inputs)
    groups: dict[tuple[Any, ...], list[tuple[tuple[Any, ...], Callable[[], object]]]] = {}
    for name, arguments, call in found:
        groups.setdefault((name, *map(_form, arguments)), []).append((arguments, call))
    return [Captured(key[0], same[0][0], tuple(call for _, call in same)) for key, same in groups.items()]


def _form(argument: Any) -> Any:
    shape = getattr(argument, "shape", None)
    if shape is not None:
        return tuple(shape), str(argument.dtype)
    return argument if isinstance(argument, (int, float, bool, str, type(None))) else type(argument).__name__


def step_inputs(shape: EngineStep, cache: KVCache, vocab_size: int, seed: int) -> list[SequenceInput]:
    """Sequences of a step of this shape with random tokens, on blocks and slots of their own."""
    from runtime.cache import SequenceInput

    rng = np.random.default_rng(seed)
    blocks = iter(rng.permutation(cache.num_blocks).tolist())
    inputs = []
    spans = [(1, context - 1) for context in shape.contexts] + list(shape.prefills)
    for slot, (new, past) in enumerate(spans):
        needed = -(-(new + past) // cache.block_size)
        tokens = tuple(rng.integers(vocab_size, size=new).tolist())
        inputs.append(SequenceInput(tokens, past, tuple(next(blocks) for _ in range(needed)), slot))
    return inputs


def blocks_needed(shape: EngineStep, block_size: int) -> int:
    lengths = [*shape.contexts, *(new + past for new, past in shape.prefills)]
    return sum(-(-length // block_size) for length in lengths)
