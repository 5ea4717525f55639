"""Open-loop replay: requests arrive when the trace says, however far behind the engine is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.backend import Backend, run_requests
from runtime.sequence import Request, RequestError, RequestOutput, SamplingParams, SettingError, failed
from runtime.trace import TraceRequest, prompt_tokens

PERCENTILES = (50, 90, 95, 99)
WARM_UP_TOKENS = 8  # of a prompt (assumed)
# Whose first token a client gets from disaggregated workers: the proxy passes on at once the token that ends the
# prompt, so that hand-over and waiting for decode room count in TPOT and not in TTFT.
FIRST_TOKEN = "prefill"
_LONGEST_WAIT_S = 0.1  # between looks at the clock while workers compute (assumed)


@dataclass(frozen=True)
class Replay:
    """Outputs in order of arrival; start_s on the clock of `time.monotonic`."""

    outputs: tuple[RequestOutput, ...]
    start_s: float
    end_s: float


def replay(
    backend: Backend,
    trace: Sequence[TraceRequest],
    *,
    speed: float = 1.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Replay:
    """Run a trace, `speed` times as fast as it was recorded. Times count from the intended arrival."""
    if not 0 < speed < float("inf"):
        raise SettingError(f"speed={speed} is out of range; use a factor above 0")
    outputs: dict[str, RequestOutput] = {}
    start_s = time.monotonic()
    next_index = 0
    while len(outputs) < len(trace):
        now_s = time.monotonic()
        while next_index < len(trace) and (due_s := start_s + trace[next_index].arrival_s / speed) <= now_s:
            item = trace[next_index]
            name = f"replay-{next_index}"
            prompt = prompt_tokens(item, next_index, backend.vocab_size, seed)
            try:
                sampling = SamplingParams(item.output_tokens, seed=seed + next_index, ignore_eos=True)
                backend.add_request(Request(name, prompt, sampling, due_s))
            except RequestError as error:
                placeholder = Request(name, prompt, SamplingParams(seed=seed), due_s)
                outputs[name] = _output(failed(placeholder, str(error), now_s).output)
            next_index += 1
        idle_s = _LONGEST_WAIT_S
        if next_index < len(trace):
            idle_s = min(idle_s, max(0.0, start_s + trace[next_index].arrival_s / speed - time.monotonic()))
        if backend.has_work:
            for event in backend.step(timeout_s=idle_s):
                if event.output is not None:
                    outputs[event.request_id] = event.output
            if progress is not None:
                progress(len(outputs), len(trace))
        elif next_index < len(trace):
            time.sleep(idle_s)
    ordered = tuple(outputs[f"replay-{i}"] for i in range(len(trace)))
    return Replay(ordered, start_s, time.monotonic())


def _output(output: RequestOutput | None) -> RequestOutput:
    assert output is not None
    return output


def warm_up(backend: Backend, num_requests: int = 1) -> None:
    """A short prompt and a few decode steps, so that first-use costs stay out of the figures."""
    length = min(WARM_UP_TOKENS, backend.max_model_len - 2, backend.capacity_tokens - 1)
    sampling = SamplingParams(2, seed=0, ignore_eos=True)
    now_s = time.monotonic()
    run_requests(
        backend,
        [Request(f"warm-up-{i}", tuple(range(1, 1 + length)), sampling, now_s) for i in range(num_requests)],
    )


def summarize(result: Replay) -> dict[str, Any]:
    """Counts, throughput over the whole run, and percentiles. Times in seconds.

    TTFT: first token - arrival.  TPOT: (last token - first token) / (tokens - 1).  ITL: each gap between tokens.
    """
    done = [output for output in result.outputs if output.error is None]
    errors = [output for output in result.outputs if output.error is not None]
    duration_s = result.end_s - result.start_s
    input_tokens = sum(output.num_prompt_tokens for output in done)
    output_tokens = sum(len(output.token_ids) for output in done)
    timings = [output.timing for output in done]
    times = [np.array(timing.token_times_s) for timing in timings]
    moved = [t for t in timings if t.export_s is not None and t.import_s is not None]
    summary: dict[str, Any] = {
        "num_requests": len(result.outputs),
        "num_finished": len(done),
        "num_failed": len(errors),
        "duration_s": duration_s,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "cached_tokens": sum(output.num_cached_tokens for output in done),
        "preemptions": sum(output.num_preemptions for output in done),
        "requests_per_s": len(done) / duration_s,
        "output_tokens_per_s": output_tokens / duration_s,
        "total_tokens_per_s": (input_tokens + output_tokens) / duration_s,
        "queue_s": distribution([t.scheduled_s - t.arrival_s for t in timings if t.scheduled_s is not None]),
        "ttft_s": distribution([t[0] - timing.arrival_s for t, timing in zip(times, timings, strict=True)]),
        "tpot_s": distribution([(t[-1] - t[0]) / (len(t) - 1) for t in times if len(t) > 1]),
        "itl_s": distribution(np.concatenate([np.diff(t) for t in times]) if times else []),
        "e2e_s": distribution([t[-1] - timing.arrival_s for t, timing in zip(times, timings, strict=True)]),
    }
    if moved:
        summary["handover"] = {
            "first_token": FIRST_TOKEN,
            "num_transfers": len(moved),
            "bytes": sum(timing.transfer_bytes for timing in moved),
            "export_s": distribution([timing.export_s for timing in moved]),
            "import_s": distribution([timing.import_s for timing in moved]),
            "prefill_to_decode_s": distribution([timing.handover_s for timing in moved]),
        }
    if errors:
        summary["errors"] = {output.request_id: output.error for output in errors}
    return summary


def distribution(values: Any) -> dict[str, float] | None:
    """Mean, extremes and percentiles; None without values."""
    array = np.asarray(values, dtype=float)
    if array.size == 0:
        return None
    summary = {"mean": float(array.mean()), "min": float(array.min()), "max": float(array.max())}
    return summary | {f"p{p}": float(np.percentile(array, p)) for p in PERCENTILES}


def request_rows(result: Replay) -> list[dict[str, Any]]:
    """One row a request, times in seconds since the start of the replay."""

    def since_start(time_s: float | None) -> float | None:
        return None if time_s is None else time_s - result.start_s

    return [
        {
            "request_id": output.request_id,
            "input_tokens": output.num_prompt_tokens,
            "output_tokens": len(output.token_ids),
            "cached_tokens": output.num_cached_tokens,
            "preemptions": output.num_preemptions,
            "finish_reason": output.finish_reason,
            "error": output.error,
            "arrival_s": since_start(output.timing.arrival_s),
            "scheduled_s": since_start(output.timing.scheduled_s),
            "token_times_s": [since_start(time_s) for time_s in output.timing.token_times_s],
            "export_s": output.timing.export_s,
            "import_s": output.timing.import_s,
            "prefill_to_decode_s": output.timing.handover_s,
            "transfer_bytes": output.timing.transfer_bytes,
        }
        for output in result.outputs
    ]
