"""Real worker processes: same tokens as one engine, and what happens when a worker dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runtime import handover
from runtime.backend import run_requests
from runtime.bench import Replay, summarize
from runtime.config.spec import ModelConfig
from runtime.disaggregation import DisaggregatedConfig, DisaggregatedEngine
from runtime.engine import EngineConfig
from runtime.sequence import Request, RequestOutput, SamplingParams, SettingError, UnavailableError
from runtime.worker import WorkerSpec

SHARED_MEMORY = Path("/dev/shm")
MakeRequests = Callable[[list[list[int]], list[SamplingParams]], list[Request]]


def spec_of(config: ModelConfig, **changes: Any) -> WorkerSpec:
    settings = {"num_blocks": 24, "block_size": 16, "num_snapshots": 2, "max_num_seqs": 4}
    return WorkerSpec(config, EngineConfig(**(settings | {"max_num_batched_tokens": 40} | changes)), seed=1)


def load(make_requests: MakeRequests, count: int = 10) -> list[Request]:
    random = np.random.default_rng(2)
    prompts = [random.integers(0, 290, size=int(n)).tolist() for n in random.integers(1, 90, size=count)]
    sampling = [SamplingParams(3 + 4 * (i % 4), 0.7 * (i % 2), seed=i, ignore_eos=True) for i in range(count)]
    return make_requests(prompts, sampling)


def alone(spec: WorkerSpec, requests: list[Request]) -> list[tuple[int, ...]]:
    engine = spec.build()
    outputs = run_requests(engine, requests)
    engine.close()
    return [output.token_ids for output in outputs]


def drain(
    proxy: DisaggregatedEngine, requests: list[Request], after_events: dict[int, Callable[[], None]]
) -> list[RequestOutput]:
    """Serve requests, doing something after so many events."""
    outputs, seen = {}, 0
    for request in requests:
        proxy.add_request(request)
    while proxy.has_work:
        for event in proxy.step(timeout_s=30.0):
            seen += 1
            if seen in after_events:
                after_events[seen]()
            if event.output is not None:
                outputs[event.request_id] = event.output
    return [outputs[request.request_id] for request in requests]


def kill(proxy: DisaggregatedEngine, role: str) -> None:
    worker = next(worker for worker in proxy.workers if worker.role == role)
    assert worker.process.pid is not None
    worker.process.kill()


@pytest.mark.parametrize("nano_config", ["v4", "qwen3"], indirect=True)
def test_same_tokens_as_one_engine(nano_config: ModelConfig, make_requests: MakeRequests) -> None:
    spec, requests = spec_of(nano_config), load(make_requests)
    bad = make_requests([[], [299, 300], [1] * 600], [SamplingParams(2)] * 3)
    bad = [Request(f"bad{i}", r.prompt_token_ids, r.sampling, r.arrival_s) for i, r in enumerate(bad)]
    with DisaggregatedEngine(spec, DisaggregatedConfig(1, 2, routing="round_robin", max_staged=16)) as proxy:
        outputs = run_requests(proxy, [*requests, *bad])
    good, failures = outputs[: len(requests)], outputs[len(requests) :]
    assert [output.token_ids for output in good] == alone(spec, requests)
    assert all(output.error for output in failures)
    assert all(output.error is None for output in good)
    moved = [output.timing for output in good if len(output.token_ids) > 1]
    assert all(timing.transfer_bytes > 0 and timing.export_s and timing.import_s for timing in moved)
    for timing in moved:
        assert timing.handover_s is not None
        assert timing.handover_s >= timing.import_s
        assert timing.token_times_s == sorted(timing.token_times_s)
        first_s, second_s = timing.token_times_s[:2]
        assert second_s - first_s >= timing.handover_s, "the first token is out before the hand-over"
    assert summarize(Replay(tuple(good), 0.0, 1.0))["handover"]["first_token"] == "prefill"
    records = proxy.step_records
    assert sum(r.num_imported for r in records["decode worker 0"]) == len(moved) / 2, "round robin"
    assert all(record.prefills for record in records["prefill worker 0"]), "a prefill worker never decodes"


def test_full_decode_side_stops_the_prefill_side(nano_config: ModelConfig, make_requests: MakeRequests) -> None:
    # Blocks for about two requests a worker: everything must pass through the back-pressure.
    spec = spec_of(nano_config, num_blocks=6, max_num_seqs=2, prefix_caching=False)
    prompts = [[i + 1] * 40 for i in range(8)]
    requests = make_requests(prompts, [SamplingParams(20, ignore_eos=True)] * 8)
    most_staged = 0
    with DisaggregatedEngine(spec, DisaggregatedConfig(1, 1, max_staged=1)) as proxy:
        for request in requests:
            proxy.add_request(request)
        outputs = {}
        while proxy.has_work:
            for event in proxy.step(timeout_s=30.0):
                if event.output is not None:
                    outputs[event.request_id] = event.output
            most_staged = max(most_staged, *(len(worker.staged) for worker in proxy.workers))
        # Leave some work undone: closing must free it, too.
        late = make_requests([[9] * 30, [8] * 30], [SamplingParams(30, ignore_eos=True)] * 2)
        for request in late:
            proxy.add_request(request)
        while not any(event.request_id == "r0" for event in proxy.step(timeout_s=30.0)):
            pass
        proxy.abort("r0")
    assert most_staged == 1
    assert [outputs[r.request_id].token_ids for r in requests] == alone(spec, requests)


def test_dead_workers_hand_their_requests_to_the_living(nano_config: ModelConfig, make_requests: MakeRequests) -> None:
    spec, requests = spec_of(nano_config), load(make_requests, 12)
    with DisaggregatedEngine(spec, DisaggregatedConfig(2, 2)) as proxy:
        killing = {3: lambda: kill(proxy, "prefill"), 25: lambda: kill(proxy, "decode")}
        outputs = drain(proxy, requests, killing)
        assert sorted(worker.role for worker in proxy.workers) == ["decode", "prefill"]
        # A request hit by both deaths may have used up its one retry; all others finish unharmed.
        expected = alone(spec, requests)
        assert sum(output.error is None for output in outputs) >= 8
        for output, tokens in zip(outputs, expected, strict=True):
            if output.error is None:
                assert output.token_ids == tokens
            else:
                assert "had been retried before" in output.error
                assert output.token_ids == tokens[: len(output.token_ids)]
        # Down to one pair; then none is left to decode.
        again = drain(proxy, load(make_requests, 6), {8: lambda: kill(proxy, "decode")})
        failed = [output for output in again if output.error is not None]
        assert failed
        assert all("no decode worker is left" in str(output.error) for output in failed)
        assert any("decode worker 1 ended (exit code -9)" in str(output.error) for output in failed)
        assert proxy.problem == "no decode worker is left; restart the server"
        with pytest.raises(UnavailableError, match="no decode worker is left"):
            proxy.add_request(requests[0])


def test_a_worker_that_cannot_start_is_an_error_not_a_hang(nano_config: ModelConfig, capfd: Any) -> None:
    spec = spec_of(nano_config, block_size=15)
    with pytest.raises(RuntimeError, match="prefill worker 0 ended while it started"):
        DisaggregatedEngine(spec, DisaggregatedConfig(1, 1))
    assert "block_size=15" in capfd.readouterr().err


def test_counts_are_checked() -> None:
    with pytest.raises(SettingError, match="num_decode=0"):
        DisaggregatedConfig(1, 0)


def test_tensors_survive_shared_memory_bit_for_bit() -> None:
    tensors = [
        torch.arange(7, dtype=torch.int32).view(7, 1),
        torch.randn(3, 5).to(torch.bfloat16),
        torch.randn(2, 2, 3).to(torch.float8_e4m3fn),
        torch.empty(0, 4),
        torch.tensor(3.5),
    ]
    name = f"{handover.segment_prefix('test')}-bits"
    written = handover.write(name, tensors)
    assert written.num_bytes == 7 * 4 + 15 * 2 + 12 + 0 + 4
    with handover.opened(written) as found:
        for given, got in zip(tensors, found, strict=True):
            assert (given.dtype, given.shape) == (got.dtype, got.shape)
            assert torch.equal(given.reshape(-1).view(torch.uint8), got.reshape(-1).view(torch.uint8))
    handover.remove(name)
    handover.remove(name)  # once gone, nothing to do
    with pytest.raises(FileNotFoundError), handover.opened(written):
        pass


def test_shared_memory_that_is_full_raises_instead_of_killing() -> None:
    name = f"{handover.segment_prefix('test')}-full"
    huge = torch.empty(1, dtype=torch.uint8).expand(2**50)
    with pytest.raises(OSError, match=r"(?i)space|memory|large"):
        handover.write(name, [huge])
    assert not (SHARED_MEMORY / name).exists()


def test_a_copy_that_fails_leaves_no_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own error comes out, not one about views that keep the segment open."""
    name = f"{handover.segment_prefix('test')}-failing"
    monkeypatch.setattr(torch.Tensor, "copy_", lambda *_: (_ for _ in ()).throw(RuntimeError("the device is gone")))
    with pytest.raises(RuntimeError, match="the device is gone"):
        handover.write(name, [torch.zeros(5)])
    assert not (SHARED_MEMORY / name).exists()


WRITER = """
import os, signal, sys, torch
from runtime import handover
name = f"{handover.segment_prefix('test')}-orphan"
handover.write(name, [torch.zeros(9)])
print(name, flush=True)
signal.pause()
"""


def test_segments_of_a_killed_process_group_are_removed_by_the_next_and_those_of_a_live_one_are_not() -> None:
    """SIGKILL to the whole group takes Python's own resource tracker too."""
    command = [sys.executable, "-c", WRITER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        try:
            handover.remove_orphans()
            assert (SHARED_MEMORY / name).exists()
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    assert (SHARED_MEMORY / name).exists()
    other = SHARED_MEMORY / name.replace("-test-", "-test-f")  # of another container's processes
    other.touch()
    try:
        assert handover.remove_orphans() >= 1
        assert not (SHARED_MEMORY / name).exists()
        assert other.exists()
    finally:
        other.unlink()
