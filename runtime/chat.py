"""What `/v1/chat/completions` takes and gives; the tokenizer's template makes the prompt."""

from __future__ import annotations

import time
from typing import Any

from pydantic import BaseModel, ConfigDict

from runtime.completions import SamplingFields
from runtime.sequence import RequestError, SamplingParams


class Message(BaseModel):
    """content: text, or OpenAI's list of parts, of which only text is read."""

    model_config = ConfigDict(extra="allow")
    role: str
    content: str | list[dict[str, Any]] | None = None

    def plain(self) -> dict[str, Any]:
        """As templates expect it, with text alone."""
        if self.content is None or isinstance(self.content, str):
            text = self.content or ""
        else:
            other = next((part.get("type") for part in self.content if part.get("type") != "text"), None)
            if other is not None:
                raise RequestError(f"a message holds a part of type {other!r}; only text is read")
            text = "".join(str(part.get("text", "")) for part in self.content)
        return {**(self.model_extra or {}), "role": self.role, "content": text}


class ChatRequest(SamplingFields):
    messages: list[Message]
    max_completion_tokens: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    top_logprobs: Any = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None

    def unsupported(self) -> dict[str, tuple[Any, ...]]:
        return super().unsupported() | {
            "top_logprobs": (0,),
            "tools": ([],),
            "tool_choice": ("none", "auto"),
            "functions": ([],),
        }

    def conversation(self) -> list[dict[str, Any]]:
        if not self.messages:
            raise RequestError("messages is empty; give at least one message")
        return [message.plain() for message in self.messages]

    def sampling(self, index: int, tokens: int) -> SamplingParams:
        """As for completions; the newer name of max_tokens counts first."""
        if self.max_completion_tokens is not None:
            return self.model_copy(
                update={"max_tokens": self.max_completion_tokens, "max_completion_tokens": None}
            ).sampling(index, tokens)
        return super().sampling(index, tokens)


def chat_choice(index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": finish_reason}


def chat_delta(index: int, text: str, finish_reason: str | None, *, first: bool) -> dict[str, Any]:
    delta = {"role": "assistant", "content": text} if first else {"content": text}
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def chat_body(
    identity: str, model: str, choices: list[dict[str, Any]], *, chunk: bool = False, **extra: Any
) -> dict[str, Any]:
    return {
        "id": identity,
        "object": "chat.completion.chunk" if chunk else "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        **extra,
    }
