"""What a launch line says of the server that it starts, with every limit at one scope."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

MOST_RANKS = 100_000  # of one launch line: far above any real one (assumed)


class LaunchError(ValueError):
    """A launch line that cannot be understood; one sentence."""


@dataclass(frozen=True)
class Launch:
    """One command. None: it does not say.

    gpus: accelerators of all that it starts, over all nodes. gpus_here: of them on this node.
    tp: accelerators over which attention is cut, SGLang's and TensorRT-LLM's attention ranks included.
    attention_dp: attention ranks that hold sequences of their own. replicas: instances that it starts.
    context_ranks: decode context parallel ranks inside tp.
    Limits are of one attention rank: sequences; tokens_per_step (chunks and decodes together); prefill_chunk;
    kv_tokens, which its KV holds.
    drafts: tokens that a step verifies beyond its own.
    """

    engine: str
    model: str | None = None
    role: Literal["prefill", "decode"] | None = None
    gpus: int | None = None
    gpus_here: int | None = None
    tp: int = 1
    pp: int = 1
    attention_dp: int = 1
    ep: int = 1
    context_ranks: int = 1
    replicas: int = 1
    sequences: int | None = None
    tokens_per_step: int | None = None
    prefill_chunk: int | None = None
    memory_share: float | None = None
    kv_dtype: str | None = None
    quantisation: str | None = None
    drafts: int | None = None
    most_context: int | None = None
    kv_tokens: int | None = None
    prefill_servers: int | None = None
    decode_servers: int | None = None

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "attention_dp", "ep", "context_ranks", "replicas"):
            size = getattr(self, name)
            if not 1 <= size <= MOST_RANKS:
                raise LaunchError(f"{self.engine}: {name}={size} is not between 1 and {MOST_RANKS}; correct the sizes")

    @property
    def gpus_of_instance(self) -> int | None:
        return None if self.gpus is None else self.gpus // self.replicas

    @property
    def label(self) -> str:
        """As points files write it, such as '2x(TP8 EP8 DPattn)'."""
        size = (self.gpus_of_instance or self.tp) // self.pp
        words = [f"TP{size}"]
        if self.ep > 1:
            words.append(f"EP{self.ep}")
        if self.attention_dp > 1:
            words.append("DPattn")
        if self.pp > 1:
            words.insert(0, f"PP{self.pp} x")
        inner = " ".join(words)
        return f"{self.replicas}x({inner})" if self.replicas > 1 else inner

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
