"""From a trace file to columns: rows are read one by one, and one that cannot be used ends itself alone."""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.scenario import Trace
from simulator.traces.columns import MOST_TOKENS, TraceColumns, TraceError, Turns
from simulator.traces.layouts import UNITS, Layout, layout_of
from simulator.traces.prefixes import block_tokens
from simulator.traces.records import Record, open_table
from simulator.traces.turns import TurnRow, prompts_of, whole_prompts
from simulator.traces.units import NAMES, Pauses, time_unit

ORIGIN = datetime(2000, 1, 1, tzinfo=UTC)
SHOWN = 40  # characters of a value in a message
MOST_UNREADABLE = 0.5  # share of a file's rows: from it on the file is not what it is taken for [assumed]
CALENDAR = "2023-11-16 18:15:46.6805900"


class _Failed(Exception):
    """A request without an answer, or without a prompt."""


@dataclass
class _Rows:
    """What was read so far. Arrivals are in the file's unit, NaN where a row has none."""

    layout: Layout
    keys: Trace
    arrived: array[float] = field(default_factory=lambda: array("d"))
    prompt: array[int] = field(default_factory=lambda: array("q"))
    output: array[int] = field(default_factory=lambda: array("q"))
    delay: list[float | None] = field(default_factory=list)
    session: list[Any] = field(default_factory=list)
    parent: list[Any] = field(default_factory=list)
    ids: list[tuple[int, ...] | None] = field(default_factory=list)
    where: list[str] = field(default_factory=list)
    calendar: bool | None = None  # times are dates; None before the first
    estimated: bool = False  # tokens were counted from text
    with_images: int = 0

    def take(self, values: Mapping[str, Any], where: str) -> None:
        """Raises TraceError for a row that cannot be read, _Failed for one that was no success."""
        layout = self.layout
        if layout.error and values.get(layout.error):
            raise _Failed
        session = self._name(values, layout.session, where)
        parent = self._name(values, layout.parent, where)
        arrived = self._arrival(values, where)
        delay = self._delay(values, where)
        prompt = self._tokens(values, layout.prompt, where)
        output = self._tokens(values, layout.output, where)
        ids = _block_ids(values.get(layout.hash_ids), f"{where}, column {layout.hash_ids}") if layout.hash_ids else None
        if prompt == 0 or output == 0:
            raise _Failed
        self.arrived.append(arrived)
        self.prompt.append(prompt)
        self.output.append(output)
        if layout.hash_ids:
            self.ids.append(ids)
            self.where.append(where)
        if layout.session:
            self.session.append(session)
        if layout.parent:
            self.parent.append(parent)
        if layout.delay:
            self.delay.append(delay)
        if layout.images:
            self.with_images += str(values.get(layout.images, "0")).strip() not in ("", "0", "None")

    def _name(self, values: Mapping[str, Any], column: str | None, where: str) -> str | float | None:
        """Of a session; None where the row has none."""
        value = values.get(column) if column else None
        if value is None or value == "" or isinstance(value, (str, int, float)):
            return value if value != "" else None
        raise TraceError(f"{where}, column {column}: {_shown(value)} is no name of a session; correct or remove it")

    def _arrival(self, values: Mapping[str, Any], where: str) -> float:
        name = self.layout.arrived
        if name is None:
            return math.nan
        value = values.get(name)
        if value is None and self.layout.delay:
            return math.nan
        if value is None and name not in values:
            raise TraceError(f"{where}: key '{name}' is missing; each row needs {', '.join(self.layout.wanted)}")
        number = _number(value)
        wants_dates = self.calendar is True or (self.calendar is None and number is None)
        if wants_dates:
            moment = _moment(value)
            if moment is None:
                like = f"a time like {CALENDAR}" if self.layout.time_unit is None else f"a number of {self._unit}"
                raise TraceError(f"{where}, column {name}: {_shown(value)} is not {like}; correct or remove the row")
            self.calendar = True
            return (moment - ORIGIN).total_seconds()
        if number is None or not 0 <= number < math.inf:
            raise TraceError(
                f"{where}, column {name}: {_shown(value)} is not a number of {self._unit} from 0 on; "
                "correct or remove the row"
            )
        self.calendar = False
        return number

    @property
    def _unit(self) -> str:
        return NAMES[self.keys.time_unit or self.layout.time_unit or "s"]

    def _delay(self, values: Mapping[str, Any], where: str) -> float | None:
        name = self.layout.delay
        value = values.get(name) if name else None
        if value is None or value == "":
            return None
        number = _number(value)
        if number is None or not 0 <= number < math.inf:
            raise TraceError(f"{where}, column {name}: {_shown(value)} is not a delay from 0 on; correct or remove it")
        return number

    def _tokens(self, values: Mapping[str, Any], name: str, where: str) -> int:
        if name not in values:
            raise TraceError(f"{where}: key '{name}' is missing; each row needs {', '.join(self.layout.wanted)}")
        value = values[name]
        at = f"{where}, column {name}"
        if self.layout.text and isinstance(value, str) and not value.strip().isdigit():
            self.estimated = True
            return math.ceil(len(value) / self.keys.characters_per_token)
        if self.layout.text and value is None:
            raise TraceError(f"{at}: there is none, so that the length is not known; add it or remove the row")
        return _count(value, at)


def read_trace(keys: Trace) -> TraceColumns:
    """Read the first `limit` requests of a trace. Rows of failed requests, and rows that cannot be read, are left out
    and counted. Raises TraceError where no row is left, or most cannot be read."""
    path = keys.path
    with open_table(path) as table:
        layout: Layout | None = None
        rows: _Rows | None = None
        failed, unreadable = 0, list[str]()
        for record in table.records:
            if record.problem:
                unreadable.append(_problem(record))
                continue
            if rows is None:
                layout = layout_of(table.columns, keys, _header_of(path, record))
                rows = _Rows(layout, keys)
            taken = _take(rows, record)
            failed += taken[0]
            unreadable += taken[1]
            if keys.limit is not None and len(rows.prompt) >= keys.limit:
                break
    if rows is None or layout is None or not len(rows.prompt):
        if unreadable:
            raise TraceError(unreadable[0])
        left = f" ({failed:,} of failed requests)" if failed else ""
        raise TraceError(f"trace file {path} holds no requests{left}; give a trace with at least one")
    if len(unreadable) >= MOST_UNREADABLE * (len(unreadable) + len(rows.prompt)):
        raise TraceError(f"{unreadable[0]} ({len(unreadable):,} rows of {path} cannot be read, half of them or more)")
    return _columns(rows, failed, tuple(unreadable))


def _problem(record: Record) -> str:
    joined = ", " if record.problem.startswith("column") else ": "
    return f"{record.where}{joined}{record.problem}"


def _header_of(path: Path, record: Record) -> str:
    return f"{path}, line 1" if ", line " in record.where else str(path)


def _take(rows: _Rows, record: Record) -> tuple[int, list[str]]:
    """Failed requests of a record, and why parts of it cannot be read."""
    failed, problems = 0, []
    parts = rows.layout.split(record.values)
    if not parts:
        return 1, []
    for values in parts:
        try:
            rows.take(values, record.where)
        except _Failed:
            failed += 1
        except TraceError as error:
            problems.append(str(error))
    return failed, problems


def _columns(rows: _Rows, failed: int, unreadable: tuple[str, ...]) -> TraceColumns:
    layout, keys = rows.layout, rows.keys
    raw = np.array(rows.arrived, dtype=np.float64)
    prompt, output = np.array(rows.prompt, dtype=np.int64), np.array(rows.output, dtype=np.int64)
    known = ~np.isnan(raw)
    timed = bool(known.any())
    notes = [layout.note] if layout.note else []
    unit: str | None = None
    if timed and not rows.calendar:
        unit, why = time_unit(raw[known], layout, keys, _pauses(rows, raw, output))
        notes += [why] if why else []
    elif rows.calendar and keys.time_unit is not None:
        raise TraceError(
            f"workload.time_unit='{keys.time_unit}' contradicts {keys.path}, whose times are dates; leave it out"
        )
    arrival = raw * (UNITS[unit] if unit else 1.0)
    size, blocks = keys.block_tokens or layout.block_tokens or 512, None
    if any(ids is not None for ids in rows.ids):
        counts = np.array([len(ids or ()) for ids in rows.ids])
        size, why = block_tokens(counts, prompt, layout, keys, rows.where.__getitem__)
        notes += [why] if why else []
    if rows.estimated:
        notes.append(
            f"tokens of text are estimated at {keys.characters_per_token:g} characters each (assumed; "
            "workload.characters_per_token overrides it)"
        )
    if rows.with_images:
        notes.append(
            f"{rows.with_images:,} requests carry images: their tokens count as far as the file's prompt tokens hold "
            "them, and no encoder is simulated"
        )
    common: dict[str, Any] = {
        "block_tokens": size, "format": layout.name, "time_unit": unit, "failed": failed, "unreadable": unreadable,
    }  # fmt: skip
    labels = _labels(rows)
    if any(delay is not None for delay in rows.delay):
        return _turn_columns(
            rows, labels, arrival, UNITS[unit or keys.time_unit or layout.time_unit or "s"], common, notes
        )
    if timed and not known.all():
        raise TraceError(
            f"{keys.path}: {int((~known).sum()):,} rows have neither a time nor a delay; add one, or remove them"
        )
    if timed:
        order = np.argsort(arrival, kind="stable")
        arrival = arrival[order] - arrival[order[0]]
    else:
        order, arrival = np.arange(len(prompt)), np.zeros(len(prompt))
        notes.append("the file has no arrivals; requests come at workload.rate (--rate)")
    if rows.ids and all(ids is not None for ids in rows.ids):
        blocks = [_cut(rows.ids[i] or (), int(prompt[i]), size) for i in order]
    return TraceColumns(
        arrival, prompt[order], output[order], blocks, timed=timed,
        session=None if labels is None else labels[order], notes=tuple(notes), **common,
    )  # fmt: skip


def _cut(ids: tuple[int, ...], prompt: int, size: int) -> tuple[int, ...]:
    """Ids beyond the prompt's length name nothing."""
    return ids[: -(-prompt // size)]


def _turn_columns(
    rows: _Rows,
    labels: NDArray[np.int64] | None,
    arrival: NDArray[np.float64],
    scale: float,
    common: dict[str, Any],
    notes: list[str],
) -> TraceColumns:
    """Sessions with delays, in order of their beginning."""
    if labels is None:
        raise TraceError(
            f"{rows.keys.path} has delays and no sessions that they are within; name the column of the session"
        )
    members: dict[int, list[int]] = {}
    for i, label in enumerate(labels.tolist()):
        members.setdefault(label if label >= 0 else -2 - i, []).append(i)

    def turn(i: int) -> TurnRow:
        delay = rows.delay[i]
        at = float(arrival[i])
        return TurnRow(
            None if math.isnan(at) else at,
            None if delay is None else delay * scale,
            int(rows.prompt[i]),
            int(rows.output[i]),
            rows.ids[i] if rows.ids else None,
        )

    sessions = [[turn(i) for i in member] for member in members.values()]
    timed = any(session[0].arrival_s is not None for session in sessions)
    start = min((s[0].arrival_s for s in sessions if s[0].arrival_s is not None), default=0.0)
    begins = [(start if s[0].arrival_s is None else s[0].arrival_s) - start + (s[0].delay_s or 0.0) for s in sessions]
    order = sorted(range(len(sessions)), key=begins.__getitem__)
    longer = [session for session in sessions if len(session) > 1]
    goes_on = bool(longer) and all(whole_prompts(session) for session in longer)
    whole = goes_on or not rows.layout.new_text
    fresh = 1 + max((max(ids, default=0) for ids in rows.ids if ids), default=0)
    size = common["block_tokens"]
    prompt, blocks, kept = list[int](), list[tuple[int, ...]](), list[tuple[int, ...]]()
    first, delay_s, at_s = [0], list[float](), list[float]()
    for k in order:
        session = sessions[k]
        told, fresh = prompts_of(session, size, fresh, whole)
        prompt += told.prompts
        blocks += told.blocks
        kept += told.kept
        first.append(len(prompt))
        pauses = [0.0, *(_pause(a, b) for a, b in itertools.pairwise(session))]
        delay_s += pauses
        at_s += (begins[k] + np.cumsum(pauses)).tolist()
    output = [turn.output_tokens for k in order for turn in sessions[k]]
    if not whole:
        notes.append("a turn's length is that of its new text: its prompt is all that was said before and that")
    elif rows.layout.new_text:
        notes.append("a turn's length is that of its whole prompt, for its hash ids go on from the turn before")
    if not timed:
        notes.append("the file has no arrivals; sessions begin at 0 s, or at workload.rate (--rate)")
    return TraceColumns(
        np.array(at_s),
        np.array(prompt, dtype=np.int64),
        np.array(output, dtype=np.int64),
        blocks,
        timed=timed,
        session=np.repeat(np.arange(len(order)), np.diff(first)),
        turns=Turns(first, [begins[k] for k in order], delay_s, kept),
        notes=tuple(notes),
        **common,
    )


def _pause(before: TurnRow, turn: TurnRow) -> float:
    """Before a turn; where it has no delay, the time since the turn before was sent. [s]"""
    if turn.delay_s is not None:
        return turn.delay_s
    if turn.arrival_s is not None and before.arrival_s is not None:
        return max(0.0, turn.arrival_s - before.arrival_s)
    return 0.0


def _labels(rows: _Rows) -> NDArray[np.int64] | None:
    """Sessions as numbers from 0, -1 for none; a chat is one with the chat that it goes on from."""
    if not rows.session or all(session is None for session in rows.session):
        return None
    roots: dict[Any, Any] = {}
    for chat, parent in zip(rows.session, rows.parent, strict=False):
        roots[chat] = chat if parent in (-1, None, "", "-1") else roots.get(parent, parent)
    numbers: dict[Any, int] = {}
    named = (None if session is None else roots.get(session, session) for session in rows.session)
    return np.array([-1 if name is None else numbers.setdefault(name, len(numbers)) for name in named])


def _pauses(rows: _Rows, raw: NDArray[np.float64], output: NDArray[np.int64]) -> Pauses | None:
    """Between chats and those that they go on from."""
    if not rows.parent:
        return None
    places = {chat: i for i, chat in enumerate(rows.session)}
    pairs = [(i, places[parent]) for i, parent in enumerate(rows.parent) if parent in places]
    if not pairs:
        return None
    later, earlier = (np.array(side) for side in zip(*pairs, strict=True))
    return Pauses(raw[later] - raw[earlier], output[earlier])


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _moment(value: Any) -> datetime | None:
    """A date and time; digits beyond a microsecond are cut, and a time without a zone is UTC."""
    if isinstance(value, datetime):
        moment = value
    else:
        try:
            moment = datetime.fromisoformat(str(value).strip())
        except ValueError:
            return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _shown(value: Any) -> str:
    return repr(value)[:SHOWN]


def _count(value: Any, where: str) -> int:
    """A whole number from 0 on, of a size that a token count can have."""
    number = value
    if isinstance(value, str):
        try:
            number = int(value.strip())
        except ValueError:
            number = _number(value)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or not 0 <= number <= MOST_TOKENS:
        raise TraceError(f"{where}: {_shown(value)} is not a whole number of tokens from 0 to {MOST_TOKENS}")
    return int(number)


def _block_ids(value: Any, where: str) -> tuple[int, ...] | None:
    """Ids of the prompt's prefix blocks; a CSV may write them as a list of numbers."""
    if value is None or value == "":
        return None
    if isinstance(value, str) and value.strip(" []"):
        parts = value.strip(" []").replace(",", " ").split()
        if all(part.lstrip("-").isdigit() for part in parts):
            return tuple(map(int, parts))
    if not isinstance(value, list) or not all(isinstance(b, int) and not isinstance(b, bool) for b in value):
        raise TraceError(f"{where}: {str(value)[:SHOWN]} is not a list of whole numbers; correct or remove it")
    return tuple(value)
