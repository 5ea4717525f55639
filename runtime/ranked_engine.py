"""An engine over several ranks: replicas with requests of their own, stepped together."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from runtime.backend import Load
from runtime.cache import check_block_size
from runtime.config.storage import cache_dtypes
from runtime.engine import Engine, Importer, StepRecord
from runtime.handover import Handover
from runtime.rank_processes import RankProcesses, RankSpec
from runtime.sequence import Request, RequestError, Sequence, SettingError, TokenEvent


class RankedEngine:
    """Looks like an engine from outside. A request stays with the replica that had the fewest tokens when it came."""

    exports_aside = False

    def __init__(self, spec: RankSpec) -> None:
        self.device = torch.device(spec.devices[0])
        config, limits = spec.source.config, spec.engine_config
        spec.parallel.check(config)  # here, where an error is one sentence and not a dead rank
        check_block_size(config, limits.block_size)
        cache_dtypes(limits.kv_cache_dtype, limits.index_dtype, config, spec.source.weights_directory)
        if limits.draft_tokens:
            raise SettingError("draft_tokens needs one rank an instance; use 0 with --tp or --dp")
        self._group = RankProcesses(spec)
        self.replicas = [Engine(self._group.replica(index), config, limits) for index in range(spec.parallel.data)]
        first = self.replicas[0]
        self.vocab_size, self.eos_token_ids = first.vocab_size, first.eos_token_ids
        self.max_model_len, self.capacity_tokens = first.max_model_len, first.capacity_tokens
        self._of_request: dict[str, Engine] = {}

    @property
    def problem(self) -> str | None:
        return None

    @property
    def has_work(self) -> bool:
        return any(replica.has_work for replica in self.replicas)

    @property
    def blocked(self) -> bool:
        """The last step found nothing that any replica could run."""
        return all(replica.blocked for replica in self.replicas)

    @property
    def step_records(self) -> Iterator[StepRecord]:
        """Of all replicas."""
        return (record for replica in self.replicas for record in replica.step_records)

    def add_request(self, request: Request, *, prefill_only: bool = False, importer: Importer | None = None) -> None:
        """See Engine."""
        if request.request_id in self._of_request:
            raise RequestError(f"request id {request.request_id!r} is already in use; choose another")
        replica = min(self.replicas, key=lambda engine: engine.load_tokens)
        replica.add_request(request, prefill_only=prefill_only, importer=importer)
        self._of_request[request.request_id] = replica

    def abort(self, request_id: str) -> None:
        replica = self._of_request.pop(request_id, None)
        if replica is not None:
            replica.abort(request_id)

    def held(self, request_id: str) -> Sequence | None:
        replica = self._of_request.get(request_id)
        return None if replica is None else replica.held(request_id)

    def write_out(self, request_id: str, segment: str) -> Handover:
        return self._of_request[request_id].write_out(request_id, segment)

    def load(self) -> Load:
        """Of all replicas together."""
        loads = [replica.load() for replica in self.replicas]
        usage = sum(load.kv_usage or 0.0 for load in loads) / len(loads)
        return Load(sum(load.running for load in loads), sum(load.waiting for load in loads), usage)

    def step(self, timeout_s: float = 0.0) -> list[TokenEvent]:
        """One step of every replica that has work."""
        pending = [replica.begin_step() for replica in self.replicas]
        plans = [each.plan for each in pending]
        events = []
        if any(plan is not None for plan in plans):
            results = self._group.run(plans)
            for replica, each, result in zip(self.replicas, pending, results, strict=True):
                events += each.events if each.plan is None else replica.finish_step(each, result)
        else:
            events = [event for each in pending for event in each.events]
        for event in events:
            if event.output is not None:
                self._of_request.pop(event.request_id, None)
        return events

    def close(self) -> None:
        try:
            for replica in self.replicas:
                replica.close()
        finally:
            self._group.close()
