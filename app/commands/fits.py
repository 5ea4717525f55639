"""`moeplan fits`: what an accelerator holds of a model, and how many tokens and sequences."""

from __future__ import annotations

from typing import Annotated

import typer

from app.commands.options import JsonOutput, KvDtype, MemoryShare, whole_above_zero
from app.errors import EXIT_NO_ANSWER


def fits(
    model: Annotated[str, typer.Argument(help="Model preset, a Hugging Face config.json, or a folder with one.")],
    gpu: Annotated[str, typer.Option(help="Accelerator: name, alias or .toml file.")],
    stack: Annotated[
        str, typer.Option(help="Engine: default, vllm, sglang, trtllm, or one of your own fits.")
    ] = "default",
    tp: Annotated[int, typer.Option(help="Tensor-parallel ranks.", callback=whole_above_zero)] = 1,
    dp: Annotated[int, typer.Option(help="Data-parallel attention ranks.", callback=whole_above_zero)] = 1,
    ep: Annotated[int, typer.Option(help="Expert-parallel ranks.", callback=whole_above_zero)] = 1,
    pp: Annotated[int, typer.Option(help="Pipeline stages.", callback=whole_above_zero)] = 1,
    dcp: Annotated[
        int,
        typer.Option(help="Tensor-parallel ranks that share the KV of one head in decode.", callback=whole_above_zero),
    ] = 1,
    context: Annotated[
        int | None,
        typer.Option(help="Tokens of each sequence; left out: the model's longest.", callback=whole_above_zero),
    ] = None,
    share: MemoryShare = None,
    kv_dtype: KvDtype = None,
    tokens_per_step: Annotated[
        int | None,
        typer.Option(help="Token budget of a step on each rank; 8192 if left out.", callback=whole_above_zero),
    ] = None,
    max_sequences: Annotated[
        int | None, typer.Option(help="Sequences that a rank works on at once.", callback=whole_above_zero)
    ] = None,
    draft_tokens: Annotated[int, typer.Option(min=0, help="Tokens that a step drafts.")] = 0,
    json_file: JsonOutput = None,
) -> None:
    """Weights, what the engine holds, room for KV, and the tokens and sequences that fit.

    Exit code 1: not one sequence of that length fits.
    """
    from app.output import STDOUT, check_writable, stdout_console, write_json
    from app.render.fits import fits_report
    from simulator.model.fits import fits
    from simulator.model.limits import TOKENS_PER_STEP
    from simulator.model.parallelism import Parallelism

    check_writable(json_file, "--json")
    found = fits(
        model,
        gpu,
        Parallelism(tp=tp, dp=dp, ep=ep, pp=pp),
        stack=stack,
        context=context,
        memory_share=share,
        kv_dtype=kv_dtype,
        dcp=dcp,
        max_tokens_per_step=tokens_per_step or TOKENS_PER_STEP,
        max_sequences=max_sequences,
        draft_tokens=draft_tokens,
    )
    write_json(found.to_json(), json_file)
    if json_file != STDOUT:
        stdout_console().print(fits_report(found.to_json()))
    if found.sequences_per_rank < 1:
        raise typer.Exit(EXIT_NO_ANSWER)
