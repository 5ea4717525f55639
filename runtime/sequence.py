"""A request and the tokens it has so far. Free of torch: scheduler, proxy and trace replay use it too."""

from __future__ import annotations

import hashlib
import secrets
from array import array
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]


class RequestError(ValueError):
    """One request cannot be served; the message says why and what would help. Other requests go on."""


class UnavailableError(RequestError):
    """No request can be served now, whatever it asks for."""


class SettingError(ValueError):
    """A setting with which an engine cannot work; the message names it and the way out."""


SEED_BITS = 62  # of a random seed; those given by users have one more at most


def random_seed() -> int:
    return secrets.randbits(SEED_BITS)


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens and when to stop.

    temperature: 0 is greedy.  top_k: 0 keeps all tokens.  top_p: 1 keeps all tokens.
    seed: drawn once when none is given, so that a request repeated after a preemption or on another worker
        draws the same tokens again.
    stop_sequences: token sequences that end the output; they stay in it.
    min_p: least probability, as a share of the likeliest token's; 0 keeps all tokens.
    min_tokens: before which nothing ends the output but its length.
    frequency_penalty, presence_penalty: taken off a logit for each time, and once, its token is in the output.
    repetition_penalty: divides positive logits of tokens seen in prompt or output, multiplies negative ones.
    logit_bias: (token, what is added to its logit).
    """

    max_tokens: int = 16
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = field(default_factory=random_seed)
    stop_token_ids: tuple[int, ...] = ()
    stop_sequences: tuple[tuple[int, ...], ...] = ()
    ignore_eos: bool = False
    min_p: float = 0.0
    min_tokens: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    @property
    def changes_logits(self) -> bool:
        return bool(
            self.min_p
            or self.min_tokens
            or self.frequency_penalty
            or self.presence_penalty
            or self.repetition_penalty != 1.0
            or self.logit_bias
        )

    def __post_init__(self) -> None:
        if not 0.0 <= self.min_p <= 1.0:
            raise RequestError(f"min_p={self.min_p} is out of range; use 0 (off) to 1")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise RequestError(f"min_tokens={self.min_tokens} is out of range; use 0 to max_tokens={self.max_tokens}")
        for name in ("frequency_penalty", "presence_penalty"):
            if not -2.0 <= getattr(self, name) <= 2.0:
                raise RequestError(f"{name}={getattr(self, name)} is out of range; use -2 to 2")
        if not 0.0 < self.repetition_penalty < float("inf"):
            raise RequestError(f"repetition_penalty={self.repetition_penalty} is out of range; use a value above 0")
        if any(not -100.0 <= bias <= 100.0 for _, bias in self.logit_bias):
            raise RequestError("logit_bias holds a value out of range; use -100 to 100")
        if self.max_tokens < 1:
            raise RequestError(f"max_tokens={self.max_tokens} asks for no output; use 1 or more")
        if not 0.0 <= self.temperature < float("inf"):
            raise RequestError(f"temperature={self.temperature} is out of range; use 0 (greedy) or more")
        if self.top_k < 0:
            raise RequestError(f"top_k={self.top_k} is negative; use 0 to keep all tokens")
        if not 0.0 < self.top_p <= 1.0:
            raise RequestError(f"top_p={self.top_p} is out of range; use a value above 0 and at most 1")
        if not 0 <= self.seed < 2**63:
            raise RequestError(f"seed={self.seed} is out of range; use 0 to 2**63 - 1")
        if any(not stop for stop in self.stop_sequences):
            raise RequestError("stop_sequences holds an empty sequence; leave it out")


@dataclass(frozen=True)
class Request:
    """What a caller asks for. `arrival_s` is on the clock of `time.monotonic`, shared by all processes."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    arrival_s: float
    output_token_ids: tuple[int, ...] = ()  # tokens that an earlier worker has already given out


def validate_request(request: Request, *, vocab_size: int, max_model_len: int, capacity_tokens: int) -> None:
    """Raise RequestError if an engine of these limits could never finish the request.

    capacity_tokens: tokens that the whole KV pool holds. The last token is never stored, so a request stores
        at most prompt + max_tokens - 1 tokens.
    """
    prompt, wanted = len(request.prompt_token_ids), request.sampling.max_tokens
    if prompt == 0:
        raise RequestError("the prompt is empty; give at least one token")
    for position, token in enumerate(request.prompt_token_ids):
        if not 0 <= token < vocab_size:
            raise RequestError(
                f"prompt token {token} at position {position} is out of range; the vocabulary is 0 to {vocab_size - 1}"
            )
    for token in (*(token for token, _ in request.sampling.logit_bias), *request.sampling.stop_token_ids):
        if not 0 <= token < vocab_size:
            raise RequestError(
                f"token {token} of logit_bias or stop_token_ids is out of range; use 0 to {vocab_size - 1}"
            )
    if prompt >= max_model_len:
        raise RequestError(
            f"the prompt has {prompt} tokens and leaves no room for output; the maximum length is "
            f"{max_model_len} tokens, prompt and output together"
        )
    if prompt + wanted > max_model_len:
        raise RequestError(
            f"prompt ({prompt} tokens) and max_tokens={wanted} exceed the maximum length of {max_model_len} "
            f"tokens; use max_tokens of at most {max_model_len - prompt}"
        )
    if prompt + wanted - 1 > capacity_tokens:
        raise RequestError(
            f"the KV pool holds {capacity_tokens} tokens, too few for prompt ({prompt} tokens) and "
            f"max_tokens={wanted}; ask for less or give the engine more blocks"
        )


@dataclass
class RequestTiming:
    """When things happened to one request, on the clock of `time.monotonic`. [s]"""

    arrival_s: float
    scheduled_s: float | None = None  # first time in a batch
    token_times_s: list[float] = field(default_factory=list)
    export_s: float | None = None  # time taken to copy blocks and state out of the prefill worker
    import_s: float | None = None  # time taken to copy them into the decode worker
    handover_s: float | None = None  # end of prefill to first possible decode step: waiting and copies
    transfer_bytes: int = 0

    @property
    def first_token_s(self) -> float | None:
        return self.token_times_s[0] if self.token_times_s else None


@dataclass(frozen=True)
class RequestOutput:
    """A finished request."""

    request_id: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    error: str | None
    timing: RequestTiming
    num_prompt_tokens: int
    num_cached_tokens: int = 0  # prompt tokens whose prefill was skipped by prefix reuse
    num_preemptions: int = 0


@dataclass(frozen=True)
class TokenEvent:
    """News of one request: a token, or its end (`output`), or both."""

    request_id: str
    token_id: int | None
    time_s: float
    output: RequestOutput | None = None


def failed(request: Request, error: str, time_s: float, timing: RequestTiming | None = None) -> TokenEvent:
    """The end of a request that could not be served (any further)."""
    output = RequestOutput(
        request.request_id,
        request.output_token_ids,
        "error",
        error,
        timing or RequestTiming(request.arrival_s),
        len(request.prompt_token_ids),
    )
    return TokenEvent(request.request_id, None, time_s, output)


class SequenceStatus(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    HELD = "held"  # prefilled, keeps its blocks until they are handed over
    FINISHED = "finished"


class Sequence:
    """The tokens of one request inside one engine, and where their cache entries lie.

    `block_ids`, `slot`, `num_computed` are written by the block manager and the scheduler alone.
    """

    def __init__(self, request: Request, block_size: int, prefill_only: bool = False) -> None:
        self.request = request
        self.request_id = request.request_id
        self.sampling = request.sampling
        self.prefill_only = prefill_only
        self.status = SequenceStatus.WAITING
        self.timing = RequestTiming(arrival_s=request.arrival_s)
        self.num_prompt = len(request.prompt_token_ids)
        self.token_ids: list[int] = [*request.prompt_token_ids, *request.output_token_ids]
        self.block_ids: list[int] = []
        self.slot: int | None = None
        self.num_computed = 0  # tokens whose cache entries exist
        self.num_published = 0  # leading full blocks that other sequences may share
        self.prefill_end = self.num_prompt  # tokens that count as prompt; after a preemption, all that there were
        self.num_imported = 0  # tokens whose cache entries wait to be imported from another worker
        self.num_cached = 0  # prompt tokens found in the cache when the sequence was first admitted
        self.num_preemptions = 0
        self.draft: int | None = None  # a guess at the token after the newest
        self.snapshot_ends: tuple[int, ...] = ()  # token counts at which a prefill chunk should end
        self._block_size = block_size
        self._block_hashes: list[bytes] = []

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def output_token_ids(self) -> tuple[int, ...]:
        return tuple(self.token_ids[self.num_prompt :])

    @property
    def num_output(self) -> int:
        return len(self.token_ids) - self.num_prompt

    @property
    def is_decode(self) -> bool:
        """Only the newest output token lacks its cache entries."""
        return self.num_computed >= self.prefill_end and len(self.token_ids) - self.num_computed == 1

    def block_hash(self, index: int) -> bytes:
        """Hash of full block `index` and of all before it (16 bytes, BLAKE2b: no accidental equals)."""
        while len(self._block_hashes) <= index:
            start = len(self._block_hashes) * self._block_size
            tokens = self.token_ids[start : start + self._block_size]
            assert len(tokens) == self._block_size, "only full blocks have a hash"
            parent = self._block_hashes[-1] if self._block_hashes else b""
            digest = hashlib.blake2b(parent + array("q", tokens).tobytes(), digest_size=16).digest()
            self._block_hashes.append(digest)
        return self._block_hashes[index]

    def output(self, finish_reason: FinishReason, error: str | None = None) -> RequestOutput:
        return RequestOutput(
            self.request_id,
            self.output_token_ids,
            finish_reason,
            error,
            self.timing,
            self.num_prompt,
            self.num_cached,
            self.num_preemptions,
        )

    def finish_reason_after(self, eos_token_ids: tuple[int, ...]) -> FinishReason | None:
        """Does the output end with its newest token?"""
        token, sampling = self.token_ids[-1], self.sampling
        if self.num_output < sampling.min_tokens:
            return None
        if token in sampling.stop_token_ids or (token in eos_token_ids and not sampling.ignore_eos):
            return "stop"
        if any(self._ends_with(stop) for stop in sampling.stop_sequences):
            return "stop"
        return "length" if self.num_output >= sampling.max_tokens else None

    def _ends_with(self, stop: tuple[int, ...]) -> bool:
        return self.num_output >= len(stop) and tuple(self.token_ids[-len(stop) :]) == stop
