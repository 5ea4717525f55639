"""`moeplan catalogue`: the accelerators and models that come with the package, with sources."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

cli = typer.Typer(no_args_is_help=True, help="Accelerators and models that ship, with their figures and sources.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@cli.command()
def gpus(
    name: Annotated[str | None, typer.Argument(help="Name, alias or TOML file; left out: all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Accelerators: peaks, memory, links, power, prices."""
    from app import catalogue
    from app.render.catalogue import gpu_table, gpus_table

    if name is None:
        _show(catalogue.gpus(), gpus_table, as_json)
    else:
        _show(catalogue.gpu(name), gpu_table, as_json)


@cli.command()
def models(
    name: Annotated[
        str | None, typer.Argument(help="Preset, or a checkpoint: its folder or config.json; left out: all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Models: parameters, weight bytes, KV bytes."""
    from app import catalogue
    from app.render.catalogue import model_table, models_table

    if name is None:
        _show(catalogue.models(), models_table, as_json)
    else:
        _show(catalogue.model(name), model_table, as_json)


def _show(data: Any, table: Callable[[Any], RenderableType], as_json: bool) -> None:
    from app.output import STDOUT, stdout_console, write_json

    if as_json:
        write_json(data, STDOUT)
    else:
        stdout_console().print(table(data))
