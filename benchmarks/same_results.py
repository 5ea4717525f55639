"""Whether a change leaves every figure as it is, to the last digit.

    python -m benchmarks.same_results --write before.json --points points.csv    # before the change
    python -m benchmarks.same_results --against before.json --points points.csv  # after it

Plays random scenarios and those of `docs/`, plans, predicts measured points, fits synthetic measurements; all by the
command line, whose options outlast moves of code. What the fits read lies in the file of results. `--only` takes some
of the groups. Exit status 1: something differs.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import io
import json
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.random_scenarios import random_scenario, toml_of

ROOT = Path(__file__).resolve().parent.parent
GROUPS = ("random", "docs", "plan", "validate", "fit")
SHOWN = 4000  # differences, of which there should be none
VOLATILE = ("elapsed_s", "seconds", "created", "commit", "folder")  # keys that no two runs share
QUESTIONS: dict[str, list[str]] = {
    "default": [],
    "one accelerator": ["--gpu", "h200", "--max-gpus", "256"],
    "short prompts, many": ["--model", "deepseek-v4-flash", "--isl", "800", "--osl", "300", "--rate", "120"],
    "grouped heads": ["--model", "qwen3-235b-a22b", "--gpu", "mi355x", "--gpu", "b200", "--rate", "8"],
    "with confidence": ["--model", "deepseek-v3", "--gpu", "b200", "--confidence", "0.8", "--max-gpus", "128"],
    "out of reach": ["--model", "kimi-k2", "--gpu", "h200", "--tpot", "0.002", "--max-gpus", "64"],
}
FILES = {"json": "--json", "requests.csv": "--requests", "series.csv": "--series", "timeline.json": "--timeline"}


def ask(arguments: Sequence[str]) -> str:
    """Run one command of `moeplan` in this process; what it ended with."""
    from app.cli import cli

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = cli(list(arguments), prog_name="moeplan", standalone_mode=False)
        except SystemExit as stop:
            code = stop.code
        except Exception as error:
            code = f"{type(error).__name__}: {error}"
    return f"{code}: {' '.join(said.getvalue().split())}" if code else "0"


def _steady(value: Any) -> Any:
    """A JSON value without what no two runs share."""
    if isinstance(value, dict):
        return {key: _steady(inner) for key, inner in value.items() if key not in VOLATILE}
    return [_steady(inner) for inner in value] if isinstance(value, list) else value


def _seen(folder: Path) -> dict[str, Any]:
    """Every file below a folder: JSON as it is, other text by its hash."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix == ".json" and "timeline" not in name:
            found[name] = _steady(json.loads(path.read_text(encoding="utf-8")))
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _ask_for_files(arguments: Sequence[str], files: dict[str, str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = [part for file, option in files.items() for part in (option, str(folder / file))]
        code = ask([*arguments, *options])
        return {"code": code.replace(name, ""), **_seen(folder)}


def simulated(text: str, *, records: bool) -> dict[str, Any]:
    """What `simulate` says of a scenario."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "scenario.toml"
        path.write_text(text, encoding="utf-8")
        files = FILES if records else {"json": "--json", "requests.csv": "--requests"}
        answer = _ask_for_files(["simulate", str(path)], {k if k != "json" else "r.json": o for k, o in files.items()})
        answer["code"] = answer["code"].replace(name, "")
        return answer


def case(task: tuple[str, str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Answer one case by its group and name."""
    group, name, given = task
    if group == "random":
        return f"random {name}", simulated(toml_of(random_scenario(int(name))), records=int(name) % 5 == 0)
    if group == "docs":
        return f"docs {name}", simulated((ROOT / "docs/scenarios" / name).read_text(encoding="utf-8"), records=True)
    if group == "plan":
        return f"plan {name}", _ask_for_files(["plan", *QUESTIONS[name]], {"plan.json": "--json"})
    if group == "validate":
        files = {"validate.json": "--json", "predictions.csv": "--predictions"}
        return "validate", _ask_for_files(["validate", given["points"]], files)
    return f"fit {name}", fitted(name, given)


def fitted(name: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """The profile or fit that synthetic measurements give."""
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        if name == "machine":
            source = folder / "measured.jsonl"
            source.write_text(inputs["measurements"], encoding="utf-8")
            code = ask(["calibrate", "fit", str(source), "--output", str(folder / "profile.json")])
        else:
            source = folder / "own.csv"
            source.write_text(serving_points(), encoding="utf-8")
            code = ask(
                ["calibrate", "serving", str(source), "--output", str(folder / "own"), "--json", str(folder / "s.json")]
            )
        source.unlink()
        return {"code": code.replace(folder_name, ""), **_seen(folder)}


def serving_points() -> str:
    """Points of a made-up stack: a step of 12 ms and 30 us for each sequence, two forms of serving."""
    rng = random.Random(0)
    out = io.StringIO()
    fields = [
        *("id", "model", "gpu", "n_gpu", "n_prefill_gpu", "n_decode_gpu", "engine", "precision", "spec_decode"),
        *("disaggregated", "prefill_parallel", "decode_parallel", "isl", "osl", "concurrency"),
        *("total_tok_s_per_gpu", "tpot_ms", "ttft_ms"),
    ]
    table = csv.DictWriter(out, fields)
    table.writeheader()
    for disaggregated in (0, 1):
        for concurrency in (1, 4, 16, 64, 256):
            tpot_s = (0.012 + 30e-6 * concurrency) * rng.uniform(0.95, 1.05)
            ttft_s = (0.2 + 0.01 * concurrency) * rng.uniform(0.8, 1.25)
            gpus = 16 if disaggregated else 8
            cycle_s = ttft_s + 1000 * tpot_s
            pools = {"n_prefill_gpu": 8, "n_decode_gpu": 8} if disaggregated else {}
            table.writerow(
                {
                    "id": f"own-{disaggregated}-{concurrency}",
                    "model": "DeepSeek-R1",
                    "gpu": "H200",
                    "n_gpu": gpus,
                    **pools,
                    "engine": "SGLang",
                    "precision": "FP8",
                    "spec_decode": "none",
                    "disaggregated": float(disaggregated),
                    "prefill_parallel": "TP8",
                    "decode_parallel": "TP8",
                    "isl": 8000,
                    "osl": 1000,
                    "concurrency": concurrency,
                    "total_tok_s_per_gpu": round(9000 * concurrency / cycle_s / gpus, 3),
                    "tpot_ms": round(tpot_s * 1e3, 4),
                    "ttft_ms": round(ttft_s * 1e3, 2),
                }
            )
    return out.getvalue()


def synthetic_measurements() -> str:
    """A file of `calibrate measure` on this machine, its times replaced by made-up ones."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "m.jsonl"
        code = ask(["calibrate", "measure", "--device", "cpu", "--preset", "quick", "--output", str(path)])
        if code != "0":
            sys.exit(f"same_results: the measurements that the fit reads could not be made ({code})")
        head, *lines = path.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        if row.get("sample"):
            seconds = _made_up_s(row) * rng.uniform(0.97, 1.03)
            row["sample"] = {"median_s": seconds, "p20_s": seconds, "p80_s": seconds, "repeats": 1}
    return "\n".join([head, *map(json.dumps, rows)]) + "\n"


def _made_up_s(row: dict[str, Any]) -> float:
    """Time of one measurement on a machine of 100 GFLOP/s, 10 GB/s and 20 us a kernel. [s]"""
    seconds = 20e-6 + row.get("flops", 0.0) / 1e11 + row.get("num_bytes", 0.0) / 1e10
    for op in row.get("ops", ()):
        work = sum(op.get("flops", {}).values()) / 1e11 + op.get("hbm_bytes", 0.0) / 1e10
        seconds += op.get("count", 1.0) * (work + op.get("network_bytes", 0.0) / 5e9)
    step = row.get("step")
    if step:
        tokens = sum(new for new, _ in step["prefills"]) + len(step["contexts"])
        context = sum(step["contexts"]) + sum(past for _, past in step["prefills"])
        seconds += row["layers"] * (2e-3 + 1e-4 * tokens + 1e-7 * context)
    return float(seconds)


def tasks(groups: Sequence[str], count: int, given: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    if "plan" in groups:
        yield from (("plan", name, given) for name in QUESTIONS)
    if "validate" in groups and given["points"]:
        yield "validate", "", given
    if "fit" in groups:
        yield from (("fit", name, given) for name in ("machine", "serving"))
    if "docs" in groups:
        yield from (("docs", path.name, given) for path in sorted((ROOT / "docs/scenarios").glob("*.toml")))
    if "random" in groups:
        yield from (("random", str(i), given) for i in range(count))


def differences(before: Any, after: Any, where: str = "") -> Iterator[str]:
    """Each value that is not the same, by its place."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys((*before, *after)):
            if key not in before or key not in after:
                yield f"{where}/{key} is only {'after' if key in after else 'before'}"
            else:
                yield from differences(before[key], after[key], f"{where}/{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from differences(one, other, f"{where}/{i}")
    elif before != after and not (before != before and after != after):
        yield f"{where}: {str(before)[:80]} -> {str(after)[:80]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--write", type=Path, metavar="FILE", help="keep the results there")
    way.add_argument("--against", type=Path, metavar="FILE", help="compare with results that were kept")
    parser.add_argument("--points", type=Path, metavar="POINTS.csv", help="measured points for `validate`")
    parser.add_argument("--scenarios", type=int, default=300, help="random scenarios")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()

    kept = json.loads(asked.against.read_text(encoding="utf-8")) if asked.against else {}
    given: dict[str, Any] = {"points": str(asked.points) if asked.points else "", "measurements": ""}
    if "fit" in asked.only:
        given["measurements"] = kept.get("measurements") or synthetic_measurements()
    todo = list(tasks(asked.only, asked.scenarios, given))
    results: dict[str, Any] = {}
    with ProcessPoolExecutor(asked.processes, get_context("spawn")) as processes:
        for name, answer in processes.map(case, todo):
            results[name] = answer
            if sys.stderr.isatty():
                print(f"\r{len(results)} of {len(todo)}: {name:<40}", end="", file=sys.stderr, flush=True)
    results = json.loads(json.dumps(results))  # as a file holds it
    if asked.write:
        asked.write.write_text(
            json.dumps({"measurements": given["measurements"], "results": results}), encoding="utf-8"
        )
        codes = [answer["code"] for answer in results.values()]
        print(f"{len(results)} cases written to {asked.write}; {sum(code != '0' for code in codes)} ended in a refusal")
        return
    before = {name: answer for name, answer in kept["results"].items() if name in results}
    found = list(differences(before, results))
    for line in found[:SHOWN]:
        print(line)
    print(f"{len(results)} cases, {len(found)} differences")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
