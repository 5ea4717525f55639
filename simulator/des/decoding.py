"""Steps of one instance that only decode, one after the other in one loop: most steps are such.

It does to the bit what `Instance._run` does in such steps, in the same order. It is faster because nothing is asked
again that cannot have changed, and because it does itself what is a call there.
"""

from __future__ import annotations

from collections.abc import Generator
from heapq import heappush
from typing import TYPE_CHECKING

from simpy.events import NORMAL

from simulator.des.clock import Alarm
from simulator.model.latency import StepLatency

if TYPE_CHECKING:
    from simulator.des.instance import Instance


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
    per_token, per_sequence, capacity = scheduler.per_token, scheduler.per_sequence, scheduler.capacity
    times = instance.times
    line_of = times.decode_line if isinstance(times, StepLatency) and times.has_lines else None
    alarm, cut = instance.step_ends, instance.cut
    rings = alarm.rings
    queue, number = env._queue, env._eid
    meter.begun_s = now = env.now
    while batch.size:  # once for each change of the sequences that run
        size = batch.size
        running = float(size)  # CPython multiplies floats by floats sooner than by integers
        context = float(rank.offsets + size * batch.tick)
        if line_of is not None:
            constant_s, slope, terms = line_of(size, size)
        changed = False
        while not changed:
            if line_of is None:
                duration = times.decode_s(batch.load())
            else:  # as StepLatency.decode_s
                duration = constant_s + slope * context
                for weight, exponent, root, f0, f1, b0, b1 in terms:
                    duration += weight * ((f0 + f1 * context) ** exponent + (b0 + b1 * context) ** exponent) ** root
            duration *= instance.slowdown
            alarm.callbacks = rings  # as Alarm.set
            heappush(queue, (now + duration, NORMAL, next(number), alarm))
            if (yield) is cut:
                return
            now = env.now
            meter.begun_s = now  # of the next step; as Meter.step
            meter.steps += 1
            meter.busy_s += duration
            meter.sequence_s += running * duration
            batch.tick = tick = batch.tick + 1
            if tick < batch.due:
                context += running
            else:
                for sequence in batch.reach(tick):
                    instance.end(sequence.request)
                size = batch.size
                context = float(rank.offsets + size * tick)
                changed = True
            scheduler.kv_integral += scheduler.kv_bytes * (now - scheduler.settled_s)  # as Scheduler.settle
            scheduler.settled_s = now
            used = (context + rank.held_tokens) * per_token
            if per_sequence:
                used += (size + rank.held_sequences) * per_sequence
            if used <= capacity:
                scheduler.kv_bytes = used
            else:
                scheduler.settle(now)
                changed = True
            if incoming:
                intake.accept()
                scheduler.settle(now)
            if waiting or recompute:
                return
            if arrived:
                intake.join()
                changed = True
