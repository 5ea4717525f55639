"""`moeplan export`: a design of a plan as files to deploy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def export(
    plan: Annotated[Path, typer.Argument(metavar="PLAN.json", help="What `plan --json` wrote.")],
    to: Annotated[
        Literal["scenario", "vllm", "sglang", "trtllm", "dynamo", "llm-d", "kubernetes"],
        typer.Option("--to", help="What the files are for."),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder to write into; made where it is not there.")
    ],
    design: Annotated[int, typer.Option("--design", metavar="N", help="Which design of the plan; 1 is the first.")] = 1,
    engine: Annotated[
        Literal["vllm", "sglang", "trtllm"] | None,
        typer.Option("--engine", help="Of manifests; left out: that of the design's stack, else vLLM."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Checkpoint to serve, where ours is not yours.")
    ] = None,
) -> None:
    """Write launch files or manifests of a design, a script that measures its promise, and what was assumed."""
    from app.errors import InputError
    from simulator.deploy.export import export as ask
    from simulator.deploy.planned import read_design

    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; give the name of a folder")
    answer = ask(read_design(plan, design), to, engine=engine, model=model)
    for path in answer.write(out):
        typer.echo(str(path))
    typer.echo(f"{answer.gpus} accelerators in all")
