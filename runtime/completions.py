"""What `/v1/completions` takes and gives: OpenAI's fields, and those that public load generators add."""

from __future__ import annotations

import time
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from runtime.sequence import RequestError, RequestOutput, SamplingParams, random_seed

DEFAULT_TOKENS = 16  # of an answer: OpenAI's
Prompt = str | list[int] | list[str] | list[list[int]]


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class CompletionRequest(BaseModel):
    """Unknown fields are ignored, as other servers do; known ones that this server lacks are refused."""

    model_config = ConfigDict(extra="ignore", strict=False)
    prompt: Prompt
    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] = Field(default_factory=list)
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int | None = None
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None

    def refuse_unsupported(self) -> None:
        for name, default in (("n", 1), ("best_of", 1), ("echo", False), ("logprobs", None), ("suffix", None)):
            value = getattr(self, name)
            if value is not None and value != default:
                raise RequestError(f"{name}={value!r} is not supported; leave it out")

    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            raise RequestError("the prompt is empty; give at least one token")
        if isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [item for item in self.prompt if not isinstance(item, int)]

    def stop_strings(self) -> tuple[str, ...]:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if "" in stops:
            raise RequestError("stop holds an empty string; leave it out")
        return tuple(stops)

    def sampling(self, index: int) -> SamplingParams:
        """Parameters for prompt `index`; OpenAI's defaults (temperature 1, 16 tokens)."""
        seed = random_seed() if self.seed is None else self.seed + index
        return SamplingParams(
            max_tokens=DEFAULT_TOKENS if self.max_tokens is None else self.max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=max(self.top_k or 0, 0),  # other servers write -1 for "all tokens"
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=seed,
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
        )


class StopText:
    """Cuts text at the first stop string; text that may be the beginning of one waits."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._pending = ""
        self.found = False

    def push(self, text: str) -> str:
        """Text that is safe to give out."""
        self._pending += text
        cuts = [at for stop in self._stops if (at := self._pending.find(stop)) >= 0]
        if cuts:
            self.found = True
            return self._pending[: min(cuts)]
        held = max((self._overlap(stop) for stop in self._stops), default=0)
        cut = len(self._pending) - held
        safe, self._pending = self._pending[:cut], self._pending[cut:]
        return safe

    def flush(self) -> str:
        text, self._pending = self._pending, ""
        return text

    def _overlap(self, stop: str) -> int:
        longest = min(len(stop) - 1, len(self._pending))
        return next((n for n in range(longest, 0, -1) if self._pending.endswith(stop[:n])), 0)


def choice(index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}


def body(identity: str, model: str, choices: list[dict[str, Any]], **extra: Any) -> dict[str, Any]:
    return {
        "id": identity,
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        **extra,
    }


def usage(outputs: list[RequestOutput]) -> dict[str, Any]:
    prompt = sum(output.num_prompt_tokens for output in outputs)
    completion = sum(len(output.token_ids) for output in outputs)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(output.num_cached_tokens for output in outputs)},
    }


def error_body(message: str, kind: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}
