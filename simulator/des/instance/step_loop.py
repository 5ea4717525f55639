"""The story of an instance: continuous batching, step after step while there is work.

Told by a generator that waits by a bare `yield` and is resumed by an alarm: the end of its step, a fault that cuts the
step, or a request that wakes it.
"""

from __future__ import annotations

from collections.abc import Generator

from simulator.des.instance.decode_loop import can_decode_alone, decode_alone
from simulator.des.instance.instance import Instance
from simulator.des.instance.rank import PromptChunk
from simulator.des.primitives.clock import Alarm

NO_CHUNKS: list[PromptChunk] = []


def start(instance: Instance) -> None:
    """Let an instance live from now on."""
    instance.start(steps_of(instance))


def steps_of(instance: Instance) -> Generator[None, Alarm, None]:
    env, scheduler, batch, usage = instance.env, instance.scheduler, instance.batch, instance.usage_counter
    arrived, awaiting_room, debuts = instance.arrived, instance.awaiting_room, instance.debuts
    announces = instance.announces
    cached, followed = instance.cache is not None, instance.observe is not None
    waiting, decodes_alone = scheduler.waiting, can_decode_alone(instance)
    yield  # until the clock runs
    while True:
        if arrived or awaiting_room:
            instance.take_in()
        chunks = NO_CHUNKS
        if waiting or scheduler.has_prompts:
            chunks = scheduler.chunks()
        elif decodes_alone and batch.size:
            yield from decode_alone(instance)
            continue
        sequences = batch.size
        if not (chunks or sequences):
            instance.fall_asleep()
            yield  # until somebody kicks it
            continue
        decodes = sequences > 0 and (scheduler.mixes or not chunks)
        duration_s, prefill_s = instance.cost(chunks, decodes)
        start_s = usage.begin(decodes)
        if announces:
            instance.announce(chunks, start_s + duration_s)
        env.ring(instance.step_ends, instance.step_ends.rings, start_s + duration_s)
        if (yield) is instance.cut:
            tell(instance, start_s, 0.0 if decodes else env.now - start_s, NO_CHUNKS, 0)
            continue
        usage.end(duration_s, prefill_s, sequences)
        if decodes:
            if debuts:
                instance.log.debut(debuts, env.now)
            for sequence in batch.emit():
                instance.end(sequence.request)
        instance.advance(chunks)
        if decodes:
            scheduler.fit()
        if cached:
            instance.fit_cache()
        if awaiting_room:
            instance.accept()
        if followed:
            tell(instance, start_s, prefill_s, chunks, sequences if decodes else 0)


def tell(instance: Instance, start_s: float, prefill_s: float, chunks: list[PromptChunk], sequences: int) -> None:
    """Tell whoever follows the steps of the one that ends now."""
    if instance.observe is not None:
        instance.observe(instance, start_s, prefill_s, sum(new for _, _, new in chunks), sequences)
