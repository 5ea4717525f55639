"""The `moeplan` command. Heavy imports wait inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from app.commands import (
    calibrate,
    capacity,
    catalogue,
    compare,
    dashboard,
    export,
    fits,
    forecast,
    frontier,
    imports,
    plan,
    sensitivity,
    simulate,
    validate,
)
from app.commands.trace_options import joined_columns
from app.errors import EXIT_INTERRUPTED, OneSentenceGroup


class RootGroup(OneSentenceGroup):
    """The command tree; --columns takes all words after it that name columns."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        return super().main(joined_columns(sys.argv[1:] if args is None else args), *rest, **extra)


cli = typer.Typer(
    cls=RootGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Size, simulate and price clusters that serve Mixture-of-Experts language models.",
)
cli.command("plan")(plan.plan)
cli.command("simulate")(simulate.simulate)
cli.command("fits")(fits.fits)
cli.command("capacity")(capacity.capacity)
cli.command("compare")(compare.compare)
cli.command("frontier")(frontier.frontier)
cli.command("forecast")(forecast.forecast)
cli.command("sensitivity")(sensitivity.sensitivity)
cli.command("export")(export.export)
cli.command("validate")(validate.validate)
cli.add_typer(catalogue.cli, name="catalogue")
cli.add_typer(calibrate.cli, name="calibrate")
cli.add_typer(imports.cli, name="import")
cli.command("app")(dashboard.app)


class RuntimeGroup(TyperGroup):
    """`moeplan runtime`, read only when asked for: its package is an extra that may not be installed."""

    def _loaded(self) -> Any:
        from app.commands.runtime import runtime_app

        return typer.main.get_command(runtime_app)

    def list_commands(self, ctx: Any) -> list[str]:
        return self._loaded().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return self._loaded().get_command(ctx, cmd_name)


cli.add_typer(
    typer.Typer(cls=RuntimeGroup, no_args_is_help=True),
    name="runtime",
    help="Run models for real: generate, replay traffic, serve an endpoint (extra `runtime`).",
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"moeplan {version('moeplan')}")
        raise typer.Exit


@cli.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    profiles: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of your own fits, from `calibrate fit` or `calibrate serving`; else MOEPLAN_PROFILES.",
        ),
    ] = None,
) -> None:
    """Size, simulate and price clusters that serve Mixture-of-Experts language models."""
    if profiles is not None:
        os.environ["MOEPLAN_PROFILES"] = str(profiles)


def main() -> None:
    """Entry point of the installed command."""
    try:
        cli(prog_name="moeplan")
    except KeyboardInterrupt:  # before the first command had started
        raise SystemExit(EXIT_INTERRUPTED) from None


if __name__ == "__main__":
    main()
