"""Samples of Prometheus: text dumps of a server's /metrics, and results of queries."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.errors import InputError

LINE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)(?:\s+(?P<stamp>-?\d+))?\s*")
LABEL = re.compile(r'\s*([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"\s*(?:,|$)')
ESCAPES = {"\\n": "\n", '\\"': '"', "\\\\": "\\"}
Labels = frozenset[tuple[str, str]]


@dataclass
class Samples:
    """Values over time of every series. times: None where dumps name none, so that they count as 0, 1, 2...
    left_out: one sentence for each line or series that could not be read."""

    series: dict[tuple[str, Labels], list[tuple[float, float]]] = field(default_factory=dict)
    timed: bool = True
    scrapes: int = 0
    left_out: list[str] = field(default_factory=list)

    def add(self, name: str, labels: Mapping[str, str], time_s: float, value: float) -> None:
        self.series.setdefault((name, frozenset(labels.items())), []).append((time_s, value))

    def of(self, name: str, **wanted: str) -> dict[Labels, list[tuple[float, float]]]:
        """Series of a name whose labels are as wanted, each in order of time."""
        asked = set(wanted.items())
        return {labels: sorted(v) for (known, labels), v in self.series.items() if known == name and asked <= labels}

    @property
    def span_s(self) -> float:
        """From the first sample to the last; 0 without times."""
        times = [time for values in self.series.values() for time, _ in values]
        return max(times) - min(times) if self.timed and times else 0.0


def looks_like_metrics(head: str) -> bool:
    """True for the beginning of a text dump or of a query result."""
    text = head.lstrip("\ufeff \n\r\t")
    if text.startswith(("{", "[")):
        return '"resultType"' in head or '"__name__"' in head
    return text.startswith(("# HELP", "# TYPE")) or re.match(r"(vllm|sglang):\w+[{\s]", text) is not None


def read_samples(paths: Iterable[Path]) -> Samples:
    """Scrapes in the order of the files, and query results. Raises InputError for a file that is neither."""
    samples = Samples()
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read ({error}); give a text dump or a query result") from None
        if text.lstrip()[:1] in ("{", "["):
            _query_result(path, text, samples)
        else:
            _text_dump(path, text, samples)
    if not samples.series:
        first = f": {samples.left_out[0]}" if samples.left_out else ""
        raise InputError(f"no samples in {', '.join(map(str, paths))}{first}; give a dump of a server's /metrics")
    return samples


def _text_dump(path: Path, text: str, samples: Samples) -> None:
    """The text exposition format, or OpenMetrics; without times of its own a dump counts by its place."""
    place = float(samples.scrapes)
    samples.scrapes += 1
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        found = LINE.fullmatch(line)
        value = _float(found["value"]) if found else None
        if found is None or value is None:
            samples.left_out.append(f"{path}, line {number}: {line[:60]!r} is not a sample; correct or remove it")
            continue
        labels = {key: _unescaped(text) for key, text in LABEL.findall(found["labels"] or "")}
        if found["stamp"] is None:
            samples.timed = False
        samples.add(found["name"], labels, int(found["stamp"]) / 1e3 if found["stamp"] else place, value)


def _query_result(path: Path, text: str, samples: Samples) -> None:
    """What /api/v1/query and /api/v1/query_range answer, one or several in a list."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); give the answer of /api/v1/query_range as it came") from None
    for answer in found if isinstance(found, list) else [found]:
        data = answer.get("data", answer) if isinstance(answer, dict) else None
        result = data.get("result") if isinstance(data, dict) else None
        if not isinstance(result, list):
            said = answer.get("error") if isinstance(answer, dict) else None
            raise InputError(
                f"{path} has no data.result{f' (its query failed: {said})' if said else ''}; give the answer of "
                "/api/v1/query_range as it came"
            )
        for place, series in enumerate(result, start=1):
            _series(f"{path}, series {place}", series, samples)


def _series(where: str, series: Any, samples: Samples) -> None:
    metric = series.get("metric") if isinstance(series, dict) else None
    if not isinstance(metric, dict) or "__name__" not in metric:
        raise InputError(
            f"{where} has no __name__, as rate() and sum() leave it; query the plain metric, "
            'for example {__name__=~"vllm:.*"}'
        )
    labels = {str(key): str(value) for key, value in metric.items() if key != "__name__"}
    values = series.get("values") or ([series["value"]] if "value" in series else [])
    for pair in values:
        value = _float(pair[1]) if isinstance(pair, list) and len(pair) == 2 else None
        time_s = _float(pair[0]) if value is not None else None
        if value is None or time_s is None:
            samples.left_out.append(f"{where}: {str(pair)[:40]} is not a time and a value; remove it")
            continue
        samples.add(str(metric["__name__"]), labels, time_s, value)


def _float(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(value) else value


def _unescaped(text: str) -> str:
    return re.sub(r"\\.", lambda found: ESCAPES.get(found[0], found[0]), text)
