"""Known traces, told apart by their columns: which column says what, in which unit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from simulator.scenario import Trace
from simulator.traces.columns import TraceError

Values = Mapping[str, Any]


def _itself(values: Values) -> list[Values]:
    return [values]


@dataclass(frozen=True)
class Layout:
    """Columns of one format; None: it has none of the kind.

    needs: columns that tell the format.
    time_unit: of arrivals and delays where nothing else tells it; None where times are calendar times.
    text: the prompt is text, whose tokens are estimated.
    new_text: a turn's prompt is its new text, to which all that was said before is added.
    split: one record of the file into requests.
    """

    name: str
    needs: frozenset[str]
    prompt: str
    output: str
    arrived: str | None = None
    time_unit: str | None = None
    hash_ids: str | None = None
    block_tokens: int | None = None
    session: str | None = None
    parent: str | None = None
    delay: str | None = None
    images: str | None = None
    error: str | None = None
    text: bool = False
    new_text: bool = False
    split: Callable[[Values], list[Values]] = field(default=_itself)
    note: str = ""

    @property
    def wanted(self) -> tuple[str, ...]:
        return tuple(name for name in (self.arrived, self.prompt, self.output) if name)


def _conversation(values: Values) -> list[Values]:
    """The first question with the answer to it, as benchmark clients take them."""
    turns = values.get("conversations")
    said = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    for question, answer in itertools.pairwise(said):
        if question.get("from") in ("human", "user") and answer.get("from") in ("gpt", "assistant", "chatgpt"):
            return [{"prompt": question.get("value"), "output": answer.get("value")}]
    return [{"prompt": "", "output": ""}]


def _text_of(values: Values) -> Any:
    """The prompt of an AIPerf entry; a batch of texts is one request."""
    texts = values.get("texts")
    if isinstance(texts, list):
        return "\n".join(str(text.get("contents", text)) if isinstance(text, dict) else str(text) for text in texts)
    return values.get("text")


def _single_turn(values: Values) -> list[Values]:
    return [{**values, "prompt": _text_of(values), "output": values.get("output_length")}]


def _multi_turn(values: Values) -> list[Values]:
    turns = values.get("turns")
    session = values.get("session_id")
    named = session if session is not None else id(values)
    return [
        {"session_id": named, "timestamp": turn.get("timestamp"), "delay": turn.get("delay"),
         "prompt": _text_of(turn), "output": turn.get("output_length")}
        for turn in (turns if isinstance(turns, list) else [])
        if isinstance(turn, dict)
    ]  # fmt: skip


def _table(value: Any) -> Values:
    return value if isinstance(value, Mapping) else {}


def _measured(values: Values) -> list[Values]:
    """A record of AIPerf's results: what was sent, and when."""
    metadata, metrics = _table(values.get("metadata")), _table(values.get("metrics"))

    def count(name: str) -> Any:
        value = _table(metrics.get(name)).get("value", 0)
        return int(value) if isinstance(value, float) and value.is_integer() else value

    return [
        {"request_start_ns": metadata.get("request_start_ns"), "session_id": metadata.get("conversation_id"),
         "prompt": count("input_sequence_length"), "output": count("output_sequence_length"),
         "error": values.get("error")}
    ]  # fmt: skip


MOONCAKE = ("timestamp", "input_length", "output_length")
# Most particular first: the first whose columns are all there is taken.
LAYOUTS = (
    Layout(
        "bailian", frozenset({"chat_id", *MOONCAKE}), "input_length", "output_length", "timestamp", "s",
        hash_ids="hash_ids", block_tokens=16, session="chat_id", parent="parent_chat_id",
    ),
    Layout(
        "aiperf_sessions", frozenset({"session_id", "input_length", "output_length"}), "input_length", "output_length",
        "timestamp", "ms", hash_ids="hash_ids", block_tokens=512, session="session_id", delay="delay",
        new_text=True,
    ),
    Layout(
        "mooncake", frozenset(MOONCAKE), "input_length", "output_length", "timestamp", "ms",
        hash_ids="hash_ids", block_tokens=512,
    ),
    Layout(
        "azure", frozenset({"TIMESTAMP", "ContextTokens", "GeneratedTokens"}), "ContextTokens", "GeneratedTokens",
        "TIMESTAMP", images="NumImages",
    ),
    Layout(
        "burstgpt", frozenset({"Timestamp", "Request tokens", "Response tokens"}), "Request tokens", "Response tokens",
        "Timestamp", "s", session="Session ID",
    ),
    Layout(
        "vidur", frozenset({"arrived_at", "num_prefill_tokens", "num_decode_tokens"}), "num_prefill_tokens",
        "num_decode_tokens", "arrived_at", "s",
    ),
    Layout(
        "vidur_lengths", frozenset({"num_prefill_tokens", "num_decode_tokens"}), "num_prefill_tokens",
        "num_decode_tokens",
    ),
    Layout(
        "splitwise", frozenset({"arrival_timestamp", "prompt_size", "token_size"}), "prompt_size", "token_size",
        "arrival_timestamp", "s",
    ),
    Layout(
        "aiperf_results", frozenset({"metadata", "metrics"}), "prompt", "output", "request_start_ns", "ns",
        error="error", split=_measured,
    ),
    Layout(
        "aiperf_multi_turn", frozenset({"turns"}), "prompt", "output", "timestamp", "ms", session="session_id",
        delay="delay", text=True, new_text=True, split=_multi_turn,
    ),
    Layout(
        "sharegpt", frozenset({"conversations"}), "prompt", "output", text=True, split=_conversation,
        note="of each conversation the first question and its answer are taken, as benchmark clients do",
    ),
    *(
        Layout(
            "aiperf_single_turn", frozenset({text, "timestamp"}), "prompt", "output", "timestamp", "ms",
            session="session_id", delay="delay", text=True, split=_single_turn,
        )
        for text in ("text", "texts")
    ),
    Layout("vllm_custom", frozenset({"prompt", "output_tokens"}), "prompt", "output_tokens", text=True),
)  # fmt: skip
UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
SUFFIXES = {"_s": "s", "_sec": "s", "_seconds": "s", "_ms": "ms", "_us": "us", "_ns": "ns"}


def layout_of(columns: Sequence[str], keys: Trace, where: str) -> Layout:
    """The format by its name, by the given columns, or by the columns of the file. Raises TraceError."""
    here = _by_spelling(columns)
    if keys.columns is not None:
        return _mapped(here, columns, keys, where)
    if keys.format != "auto":
        known = next(layout for layout in LAYOUTS if layout.name == keys.format)
        layout = _spelt(known, here)
        missing = [name for name in sorted(known.needs) if _normal(name) not in here]
        if missing:
            raise TraceError(
                f"{where}: column '{missing[0]}' is missing, which workload.format='{keys.format}' needs; "
                "leave format out, or name the columns that there are in [workload.columns]"
            )
        return layout
    for layout in LAYOUTS:
        if all(_normal(name) in here for name in layout.needs):
            return _spelt(layout, here)
    raise TraceError(_unknown(columns, here, where))


def _normal(name: str) -> str:
    return " ".join(name.casefold().split())


def _by_spelling(columns: Sequence[str]) -> dict[str, str]:
    return {_normal(name): name for name in columns}


def _spelt(layout: Layout, here: Mapping[str, str]) -> Layout:
    """With the columns as this file spells them; those that `split` makes keep their names."""
    if layout.split is not _itself:
        return layout
    names = ("prompt", "output", "arrived", "hash_ids", "session", "parent", "delay", "images")
    given = {name: getattr(layout, name) for name in names}
    found = {name: here.get(_normal(value), value) for name, value in given.items() if value}
    return replace(layout, **found)


def _mapped(here: Mapping[str, str], columns: Sequence[str], keys: Trace, where: str) -> Layout:
    """By [workload.columns]."""
    assert keys.columns is not None
    given = {name: value for name, value in keys.columns.model_dump().items() if value is not None}
    for role, name in given.items():
        if _normal(name) not in here:
            raise TraceError(
                f"{where}: workload.columns.{role}='{name}' is no column of it; it has {', '.join(columns) or 'none'}"
            )
    found = {role: here[_normal(name)] for role, name in given.items()}
    unit = next((unit for end, unit in SUFFIXES.items() if _normal(found.get("arrived", "")).endswith(end)), None)
    empty = Layout("columns", frozenset(found.values()), "", "", time_unit=unit)
    return replace(empty, **found)  # type: ignore[arg-type]


def _unknown(columns: Sequence[str], here: Mapping[str, str], where: str) -> str:
    """The format that lacks least is named, and the way out."""
    nearest = min(LAYOUTS, key=lambda layout: (_lacks(layout, here), -len(layout.needs)))
    missing = [name for name in (*nearest.wanted, *sorted(nearest.needs)) if _normal(name) not in here]
    if nearest.split is not _itself:
        missing = [name for name in sorted(nearest.needs) if _normal(name) not in here]
    if _lacks(nearest, here) < len(nearest.needs):
        return (
            f"{where}: column '{missing[0]}' is missing, which a {nearest.name} trace has; add it, or name those "
            "that there are as arrived, prompt and output in [workload.columns] (--columns)"
        )
    return (
        f"{where}: columns {', '.join(columns)[:200] or 'none'} are those of no known trace; name those with arrivals "
        "and token counts: --columns arrived=NAME prompt=NAME output=NAME, or [workload.columns]"
    )


def _lacks(layout: Layout, here: Mapping[str, str]) -> int:
    return sum(_normal(name) not in here for name in layout.needs)
