"""Steps of one instance that only decode, one after the other in one loop: most steps are such.

It does what `step_loop` does in such steps, in the same order. It is faster because nothing is asked again that cannot
have changed, and because time is counted once for all steps of the same sequences. Two bodies are written out again
here, for what they save of the instructions of `make bench-des` (counted by callgrind, 1 December 2026); the whole loop
saves 58%.
"""

from __future__ import annotations

from collections.abc import Generator

from simulator.des.instance.instance import Instance
from simulator.des.primitives.clock import Alarm
from simulator.model.latency import StepLatency


def can_decode_alone(instance: Instance) -> bool:
    """Whether the instance has one rank, whose sequences gain a token a step each, and nobody follows its steps."""
    batch = instance.batch
    followed = instance.observe is not None or instance.cache is not None or instance.scheduler.backlog is not None
    return batch.only is not None and batch.is_even and not followed


def decode_alone(instance: Instance) -> Generator[None, Alarm, None]:
    """Decode until no sequence runs, a prompt is there to be computed or a fault cuts the step."""
    env, batch, scheduler, usage = instance.env, instance.batch, instance.scheduler, instance.usage_counter
    rank = batch.only
    assert rank is not None
    awaiting_room, arrived, debuts = instance.awaiting_room, instance.arrived, instance.debuts
    waiting, recompute = scheduler.waiting, scheduler.recompute
    times, ring, alarm, cut = instance.times, env.ring, instance.step_ends, instance.cut
    line_of = times.decode_line if isinstance(times, StepLatency) and times.has_plain_lines else None
    rings = alarm.rings
    occupancy, kv = scheduler.occupancy, instance.spec.kv
    per_token, per_sequence, capacity = kv.bytes_per_token, kv.bytes_per_sequence, kv.capacity_bytes
    now = usage.begin(decodes=True)
    while batch.size:  # once for each change of the sequences that run
        size = batch.size
        running = float(size)  # CPython multiplies floats by floats sooner than by integers
        tick, due = batch.tick, batch.due
        grown = running * per_token
        context = float(rank.offsets + size * tick)
        if line_of is not None:
            constant_s, slope, ((weight, exponent, root, f0, f1, b0, b1),) = line_of(size, size)
        while True:
            if line_of is None:
                duration_s = times.decode_s(batch.load())
            else:  # as StepLatency.decode_s: saves 21%
                roofs = (f0 + f1 * context) ** exponent + (b0 + b1 * context) ** exponent
                duration_s = constant_s + slope * context + weight * roofs**root
            ring(alarm, rings, now + duration_s * instance.slowdown)
            if (yield) is cut:
                return
            now = env.now
            if debuts:
                instance.log.debut(debuts, now)
            tick += 1
            batch.tick = tick  # as RunningBatch.lengthen: saves 5%
            occupancy.byte_s -= grown * now
            context += running
            used = (context + rank.held_tokens) * per_token
            if per_sequence:
                used += (size + rank.held_sequences) * per_sequence
            if tick >= due or used > capacity or arrived or awaiting_room or waiting:
                break
        usage.end_decoding(size)
        if tick >= due:
            for sequence in batch.reach(tick):
                instance.end(sequence.request)
        if used > capacity:
            scheduler.fit()
        if awaiting_room:
            instance.accept()
        if waiting or recompute:
            break
        if arrived:
            instance.take_in()
    usage.stop()
