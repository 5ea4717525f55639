"""Steps of one instance that only decode, one after the other in one loop: most steps are such.

It does what `Instance._run` does in such steps, in the same order. It is faster because nothing is asked again that
cannot have changed, because it does itself what is a call there, and because time is booked once for all steps of the
same sequences.
"""

from __future__ import annotations

from collections.abc import Generator
from heapq import heappush
from typing import TYPE_CHECKING

from simpy.events import NORMAL

from simulator.des.primitives.clock import Alarm
from simulator.model.latency import StepLatency

if TYPE_CHECKING:
    from simulator.des.instance.instance import Instance


def can_decode_alone(instance: Instance) -> bool:
    """Whether the instance has one rank, whose sequences gain a token a step each, and nobody follows its steps."""
    batch = instance.batch
    followed = instance.observe is not None or instance.cache is not None or instance.scheduler.backlog is not None
    return batch.only is not None and batch.is_even and not followed


def decode_alone(instance: Instance) -> Generator[None, Alarm, None]:
    """Decode until no sequence runs, a prompt is there to be computed or a fault cuts the step."""
    env, batch, scheduler, meter, intake = (
        instance.env, instance.batch, instance.scheduler, instance.meter, instance.intake
    )  # fmt: skip
    rank = batch.only
    assert rank is not None
    incoming, arrived, waiting, recompute = intake.waiting, intake.arrived, scheduler.waiting, scheduler.recompute
    books, capacity = scheduler.books, scheduler.capacity
    per_token, per_sequence = books.per_token, books.per_sequence
    times = instance.times
    line_of = times.decode_line if isinstance(times, StepLatency) and times.has_plain_lines else None
    alarm, cut = instance.step_ends, instance.cut
    rings = alarm.rings
    queue, number = env._queue, env._eid
    meter.begun_s = now = env.now
    while batch.size:  # once for each change of the sequences that run
        size = batch.size
        running = float(size)  # CPython multiplies floats by floats sooner than by integers
        grown = running * per_token
        tick = batch.tick
        context = float(rank.offsets + size * tick)
        if line_of is not None:
            constant_s, slope, ((weight, exponent, root, f0, f1, b0, b1),) = line_of(size, size)
        while True:
            if line_of is None:
                duration = times.decode_s(batch.load())
            else:  # as StepLatency.decode_s
                roofs = (f0 + f1 * context) ** exponent + (b0 + b1 * context) ** exponent
                duration = constant_s + slope * context + weight * roofs**root
            alarm.callbacks = rings  # as Alarm.set
            heappush(queue, (now + duration * instance.slowdown, NORMAL, next(number), alarm))
            if (yield) is cut:
                return
            now = env.now
            tick += 1
            batch.tick = tick  # as RunningBatch.advance
            books.byte_s -= grown * now
            context += running
            used = (context + rank.held_tokens) * per_token
            if per_sequence:
                used += (size + rank.held_sequences) * per_sequence
            if tick >= batch.due or used > capacity or arrived or incoming or waiting:
                break
        ran = now - meter.begun_s
        meter.begun_s = now
        meter.busy_s += ran
        meter.sequence_s += running * ran
        if tick >= batch.due:
            for sequence in batch.reach(tick):
                instance.end(sequence.request)
        if used > capacity:
            scheduler.fit()
        if incoming:
            intake.accept()
        if waiting or recompute:
            return
        if arrived:
            intake.join()
