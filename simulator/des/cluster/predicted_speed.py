"""How fast an instance is predicted to be at full load: what routers compare where instances are unlike."""

from __future__ import annotations

from simulator.des.instance.spec import InstanceSpec
from simulator.model.latency import Chunk, DecodeLoad


def predicted_speed(spec: InstanceSpec, pool: str, prompt: float, output: float) -> float:
    """Requests of mean length (prompt and output tokens) that an instance of the pool does in a second.

    Prefill in whole steps of its token budget; decode with as many sequences as may run at once, at their mean
    context; colocated one after the other: 1 / (prefill seconds + decode seconds of a request).
    """
    prefill_s = _prefill_s(spec, max(1, round(prompt)))
    if pool == "prefill":
        return 1.0 / prefill_s
    decode_s = output / spec.acceptance_length * _decode_s(spec, max(1, round(prompt + output / 2)))
    return 1.0 / (decode_s if pool == "decode" else prefill_s + decode_s)


def _prefill_s(spec: InstanceSpec, prompt: int) -> float:
    """Seconds of a prompt's own where every rank is full of such prompts."""
    budget = spec.max_tokens_per_step
    long = Chunk(budget, max(0, prompt - budget) // 2)
    chunks = [long] if prompt > budget else [Chunk(prompt, 0)] * (budget // prompt)
    tokens = spec.ranks * sum(chunk.new for chunk in chunks)
    return prompt / tokens * spec.times.prefill_s(chunks, tokens)


def _decode_s(spec: InstanceSpec, context: int) -> float:
    """Seconds of a decode step of one sequence's own where as many run as fit."""
    of_one = spec.kv.used_bytes(1, context)
    fit = spec.max_sequences / spec.ranks
    if of_one > 0:
        fit = min(fit, spec.kv.capacity_bytes / of_one)
    batch = max(1, int(fit))
    total = batch * spec.ranks
    return spec.times.decode_s(DecodeLoad.alike(batch, context, spec.times.caps, total)) / total
