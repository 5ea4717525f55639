"""One attention rank of an instance: its KV room, the prompts it computes and the sums over its running sequences."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from simulator.des.instance.kv_room import KvOccupancy, KvRoom


@dataclass(slots=True)
class Prompt:
    """A prompt under way: `done` of `tokens` are computed."""

    request: int
    tokens: int
    done: int = 0
    offline: bool = False


@dataclass(slots=True, eq=False)
class Rank:
    """One attention rank: its KV room, the prompts it is computing and the sums over its running sequences."""

    index: int
    kv: KvRoom
    occupancy: KvOccupancy
    capped_fixed: list[int]  # per cap: sum over sequences of min(context, cap), less growing * tick
    growing: list[int]  # per cap: sequences whose context is below it
    size: int = 0  # running sequences
    offsets: int = 0  # sum of context - tick over them
    held_sequences: int = 0  # sequences whose KV is held but that do not decode: in prefill, in transfer
    held_tokens: int = 0
    prefilling: deque[Prompt] = field(default_factory=deque)
    left: int = 0  # of the tokens of the step that is being put together

    def admits(self, tokens: int, tick: int, room: float) -> bool:
        """Whether one more sequence of `tokens` fits: into `room` beside others, into all there is alone."""
        kv = self.kv
        size = self.size
        sequences = size + self.held_sequences + 1
        used = (tokens + self.offsets + size * tick + self.held_tokens) * kv.bytes_per_token
        if kv.bytes_per_sequence:
            used += sequences * kv.bytes_per_sequence
        return used <= (room if sequences > 1 else kv.capacity_bytes)

    def used_bytes(self, tick: int) -> float:
        return self.kv.used_bytes(self.size + self.held_sequences, self.offsets + self.size * tick + self.held_tokens)

    def hold(self, tokens: int) -> None:
        """Room for a sequence that does not decode yet."""
        self.held_sequences += 1
        self.held_tokens += tokens
        self.occupancy.come(tokens)

    def release(self, tokens: int) -> None:
        """Such a sequence goes without having decoded here."""
        self.held_sequences -= 1
        self.held_tokens -= tokens
        self.occupancy.go(tokens)

    def start_decoding(self, tokens: int) -> None:
        """A held sequence decodes from now on: the batch counts it."""
        self.held_sequences -= 1
        self.held_tokens -= tokens


PromptChunk = tuple[Rank, Prompt, int]  # a prompt on a rank, and how many of its tokens a step computes
