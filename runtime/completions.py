"""What `/v1/completions` takes and gives: OpenAI's fields, and those that other servers and load generators add."""

from __future__ import annotations

import time
from typing import Any

from pydantic import BaseModel, ConfigDict

from runtime.sequence import RequestError, RequestOutput, SamplingParams, random_seed

DEFAULT_TOKENS = 16  # of an answer: OpenAI's
Prompt = str | list[int] | list[str] | list[list[int]]


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class SamplingFields(BaseModel):
    """What both endpoints take. Unknown fields are ignored, as other servers do; known ones that this server lacks are
    refused unless they ask for what it does anyway."""

    model_config = ConfigDict(extra="ignore", strict=False)
    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    min_tokens: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Any = None
    best_of: Any = None
    logprobs: Any = None
    prompt_logprobs: Any = None
    use_beam_search: Any = None
    length_penalty: Any = None
    allowed_token_ids: Any = None
    bad_words: Any = None
    response_format: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None

    def refuse_unsupported(self) -> None:
        for name, plain in self.unsupported().items():
            value = getattr(self, name)
            if value is not None and value not in plain:
                raise RequestError(f"{name}={value!r} is not supported; leave it out")

    def unsupported(self) -> dict[str, tuple[Any, ...]]:
        """Fields that are refused, with the values that ask for nothing."""
        nothing: tuple[Any, ...] = (False, [], {})
        names = ("prompt_logprobs", "use_beam_search", "allowed_token_ids", "bad_words", "structured_outputs")
        guided = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
        return {
            "n": (1,),
            "best_of": (1,),
            "logprobs": (False,),
            "length_penalty": (1.0,),
            "response_format": ({"type": "text"},),
            **dict.fromkeys((*names, *guided), nothing),
        }

    def stop_strings(self) -> tuple[str, ...]:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if "" in stops:
            raise RequestError("stop holds an empty string; leave it out")
        return tuple(stops)

    def sampling(self, index: int, tokens: int) -> SamplingParams:
        """Parameters for prompt `index`; OpenAI's defaults (temperature 1). tokens: of an answer, unless said."""
        seed = random_seed() if self.seed is None else self.seed + index
        return SamplingParams(
            max_tokens=tokens if self.max_tokens is None else self.max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=max(self.top_k or 0, 0),  # other servers write -1 for "all tokens"
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=seed,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            min_p=self.min_p or 0.0,
            min_tokens=self.min_tokens or 0,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            logit_bias=tuple((self.logit_bias or {}).items()),
        )


class CompletionRequest(SamplingFields):
    """`/v1/completions`."""

    prompt: Prompt
    echo: Any = None
    suffix: Any = None

    def unsupported(self) -> dict[str, tuple[Any, ...]]:
        return super().unsupported() | {"echo": (False,), "suffix": ("",)}

    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            raise RequestError("the prompt is empty; give at least one token")
        if isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [item for item in self.prompt if not isinstance(item, int)]


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
