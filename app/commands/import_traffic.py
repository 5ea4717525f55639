"""`moeplan import traffic`: recorded traffic as a scenario."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from app.commands.options import JsonOutput, whole_above_zero
from app.commands.quantities import requests_per_s
from app.commands.trace_options import BlockTokensInput, ColumnsInput, TimeUnitInput, trace_keys
from app.errors import InputError

HEAD_CHARACTERS = 4096  # that tell metrics from a trace


def traffic(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="A trace (CSV, JSONL, JSON or Parquet, gzipped or not), or dumps of /metrics or query results of a "
            "vLLM or SGLang server.",
        ),
    ],
    output: Annotated[Path, typer.Option(metavar="SCENARIO.toml", help="Write the scenario there.")],
    columns: ColumnsInput = None,
    time_unit: TimeUnitInput = None,
    block_tokens: BlockTokensInput = None,
    limit: Annotated[
        int | None, typer.Option(help="Read that many requests of the trace.", callback=whole_above_zero)
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="Send the trace at so many requests per second.", parser=requests_per_s),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(metavar="S", min=1e-3, help="Between the first dump of /metrics and the last; one: since start."),
    ] = None,
    scenario: Annotated[
        Path | None,
        typer.Option(metavar="BASE.toml", help="Model, limits and deployment; left out: the default that ships."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model preset, or a Hugging Face config.json.")] = None,
    gpu: Annotated[list[str] | None, typer.Option(help="Accelerator to choose from; may be repeated.")] = None,
    stack: Annotated[
        str | None, typer.Option(help="Stack whose rates count, such as one that `calibrate serving` has fitted.")
    ] = None,
    json_file: JsonOutput = None,
) -> None:
    """Turn recorded traffic into a scenario that `simulate` runs and `plan` reads.

    Says the rate by hour, lengths, prefix hits and sessions. Where the base scenario has no deployment, the planner's
    estimate sizes one.
    """
    from app.imports.traffic_scenario import with_name
    from app.output import STDOUT, check_writable, stdout_console, write_json
    from app.scenarios import default_scenario
    from simulator.scenario import load_scenario

    check_writable(output, "--output")
    check_writable(json_file, "--json")
    base = with_name(
        load_scenario(scenario) if scenario else default_scenario(),
        f"traffic of {files[0].name}",
        model,
        gpu or (),
        stack,
    )
    keys = trace_keys(columns, time_unit, block_tokens) | {
        key: value for key, value in (("limit", limit), ("rate", rate)) if value is not None
    }
    if _are_metrics(files):
        if keys:
            flag = next(iter(keys)).replace("_", "-")
            raise InputError(f"--{flag} is for traces, and {files[0]} holds metrics; leave it out")
        answer, report = _from_metrics(files, seconds, base, output)
    else:
        if len(files) > 1:
            raise InputError(f"{files[1]} would be a second trace; give one trace, or dumps of /metrics alone")
        if seconds is not None:
            raise InputError(f"--seconds is for dumps of /metrics, and {files[0]} is none; leave it out")
        answer, report = _from_trace(files[0], keys, base, output)
    write_json(answer, json_file)
    if json_file != STDOUT:
        stdout_console().print(report)


def _are_metrics(files: list[Path]) -> bool:
    from app.imports.prometheus import looks_like_metrics

    kinds = []
    for path in files:
        if not path.is_file():
            raise InputError(f"{path} is no file; give the path of a trace, or of a dump of /metrics")
        with path.open("rb") as file:
            kinds.append(looks_like_metrics(file.read(HEAD_CHARACTERS).decode("utf-8", errors="replace")))
    if any(kinds) and not all(kinds):
        raise InputError(f"{files[kinds.index(False)]} holds no metrics, unlike the others; give one kind of file")
    return all(kinds)


def _from_trace(path: Path, keys: dict[str, Any], base: Any, output: Path) -> tuple[dict[str, Any], Any]:
    from app.imports.traffic_scenario import scenario_text, trace_workload
    from app.render.traffic import trace_report
    from simulator.scenario import Trace, parse_scenario
    from simulator.traces.reading import read_trace
    from simulator.traces.summary import summary_of

    given = {"kind": "trace", "path": path, **keys}
    asked = parse_scenario({"model": base.model, "workload": given}, "options").workload
    assert isinstance(asked, Trace)
    trace = read_trace(asked)
    summary = summary_of(trace).to_json()
    workload = trace_workload(asked, output)
    told = {key: summary[key] for key in ("time_unit", "block_tokens")}
    workload |= {key: value for key, value in told.items() if value is not None}
    rate = summary["mean_rate"]
    comments = [
        f"{summary['requests']:,} requests of a {summary['format']} trace, {path.name}"
        + (f", {rate:.4g} requests/s" if rate else ""),
        *(f"prompt and output tokens at {q}: {summary['prompt']['quantiles'][q]:.0f}, "
          f"{summary['output']['quantiles'][q]:.0f}" for q in summary["prompt"]["quantiles"]),
    ]  # fmt: skip
    hits = summary["hit_share"] or 0.0
    text = scenario_text(base, workload, output, comments, cached=hits > 0, in_turns=trace.turns is not None)
    output.write_text(text, encoding="utf-8")
    return summary | {"scenario": str(output)}, trace_report(summary, str(output))


def _from_metrics(files: list[Path], seconds: float | None, base: Any, output: Path) -> tuple[dict[str, Any], Any]:
    from app.imports.engine_metrics import seen_traffic
    from app.imports.prometheus import read_samples
    from app.imports.traffic_scenario import open_loop, scenario_text
    from app.render.traffic import metrics_report

    samples = read_samples(files)
    seen = seen_traffic(samples, seconds).to_json()
    workload = open_loop(seen_traffic(samples, seconds))
    comments = [
        f"{seen['requests']:,.0f} requests in {seen['seconds']:,.0f} s, from metrics of {seen['engine']}",
        "lengths are lognormal with the mean of the counters and the spread of the histograms; arrivals are a Poisson",
        "stream (assumed: metrics do not tell bursts, nor how prompt and output go together)",
    ]
    if "shared_prefix" in workload:
        comments.append(
            f"{seen['prefix_hit_rate']:.1%} of the prompt tokens were found in the prefix cache: one beginning common "
            "to all prompts stands for them (assumed)"
        )
    text = scenario_text(base, workload, output, comments, cached="shared_prefix" in workload)
    output.write_text(text, encoding="utf-8")
    seen["left_out"] = samples.left_out
    return seen | {"scenario": str(output)}, metrics_report(seen, str(output))
