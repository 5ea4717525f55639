"""`moeplan import`: what people have at hand, as files that the other commands take."""

from __future__ import annotations

import typer

from app.commands import import_results, import_traffic

cli = typer.Typer(no_args_is_help=True, help="Turn traces, metrics and benchmark results into files of this tool.")

cli.command("results")(import_results.results)
cli.command("traffic")(import_traffic.traffic)
