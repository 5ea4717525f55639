"""Text to token ids and back: bytes as ids, or a Hugging Face tokenizer from a directory."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from runtime.sequence import RequestError, SettingError

UNKNOWN = "\ufffd"


class TextStream(Protocol):
    def push(self, token_id: int) -> str:
        """Text that this token completes."""

    def flush(self) -> str:
        """What is left at the end."""


class Tokenizer(Protocol):
    def encode(self, text: str) -> list[int]: ...

    def encode_chat(self, messages: list[dict[str, Any]], settings: dict[str, Any]) -> list[int]:
        """A conversation by the model's template, up to where the answer begins. RequestError without one.

        settings: variables of the template (`chat_template_kwargs`).
        """

    def stream(self) -> TextStream: ...


def decode(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    stream = tokenizer.stream()
    return "".join(stream.push(token) for token in token_ids) + stream.flush()


class ByteTokenizer:
    """UTF-8 bytes are the token ids; ids above 255 stand for no text and show as U+FFFD."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_chat(self, messages: list[dict[str, Any]], settings: dict[str, Any]) -> list[int]:
        raise RequestError("bytes have no chat template; use /v1/completions, or serve with a --tokenizer that has one")

    def stream(self) -> TextStream:
        return _ByteStream()


class _ByteStream:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        if token_id > 255:
            text = self._decoder.decode(b"", final=True) + UNKNOWN
            self._decoder.reset()
            return text
        return self._decoder.decode(bytes([token_id]))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class DirectoryTokenizer:
    """The tokenizer files of a checkpoint."""

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise SettingError(f"tokenizer {directory} is not a directory; give the folder of tokenizer.json")
        try:
            from transformers import AutoTokenizer
        except ImportError:
            raise SettingError("a tokenizer directory needs the package `transformers`; install it") from None
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        except (OSError, ValueError) as error:
            raise SettingError(f"no tokenizer could be read from {directory}: {error}") from None

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text))

    def encode_chat(self, messages: list[dict[str, Any]], settings: dict[str, Any]) -> list[int]:
        if not self._tokenizer.chat_template:
            raise RequestError("this model's tokenizer has no chat template; use /v1/completions")
        try:
            text = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **settings)
        except Exception as error:  # templates are programs of their own and raise what they like
            raise RequestError(f"the chat template refuses these messages: {error}") from None
        return list(self._tokenizer.encode(text, add_special_tokens=False))  # the template wrote them

    def stream(self) -> TextStream:
        return _DirectoryStream(self._tokenizer)


class _DirectoryStream:
    """Decodes the newest tokens together with those given out just before: spaces depend on the neighbour."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._new: list[int] = []

    def push(self, token_id: int) -> str:
        self._new.append(token_id)
        text = self._new_text()
        if not text or text.endswith(UNKNOWN):  # perhaps half a character
            return ""
        self._context, self._new = self._new, []
        return text

    def flush(self) -> str:
        text, self._new = self._new_text(), []
        return text

    def _new_text(self) -> str:
        known = self._tokenizer.decode(self._context)
        return self._tokenizer.decode(self._context + self._new)[len(known) :]


def has_tokenizer(directory: Path) -> bool:
    return any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))


def load_tokenizer(directory: Path | None) -> Tokenizer:
    return ByteTokenizer() if directory is None else DirectoryTokenizer(directory)
