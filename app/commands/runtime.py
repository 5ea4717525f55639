"""`moeplan runtime`: run a model for real. Needs the extra `runtime`, read only inside the commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from app.commands.options import LAST_PORT, JsonOutput, above_zero, whole_above_zero
from app.commands.runtime_options import (
    EngineOptions,
    build_backend,
    say_what_is_missing,
    tokenizer_directory,
    with_engine_options,
)
from app.errors import EXIT_BAD_INPUT, EXIT_NO_ANSWER, InputError, OneSentenceGroup

runtime_app = typer.Typer(
    cls=OneSentenceGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Run models for real: generate, replay traffic, serve an endpoint (extra `runtime`).",
)

TokenizerOption = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer",
        metavar="DIR",
        help="Tokenizer directory; else that beside the weights, else bytes are ids.",
    ),
]


@contextmanager
def _backend(options: EngineOptions) -> Iterator[Any]:
    _require("torch", "numpy")
    backend = build_backend(options)
    try:
        yield backend
    finally:
        backend.close()


def _require(*packages: str) -> None:
    for package in packages:
        if find_spec(package) is None:
            raise InputError(
                f"this command needs the package `{package}`; install the extra: pip install 'moeplan[runtime]'"
            )


@runtime_app.command()
@with_engine_options
def generate(
    options: EngineOptions,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="Text; may be given often.")] = None,
    prompt_ids: Annotated[
        list[str] | None, typer.Option("--prompt-ids", metavar="1,2,3", help="Token ids; may be given often.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 32,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="0 keeps all tokens.")] = 0,
    top_p: Annotated[float, typer.Option(help="1 keeps all tokens.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the sampling.")] = 0,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after the end-of-text token.")] = False,
    tokenizer: TokenizerOption = None,
    json_file: JsonOutput = None,
) -> None:
    """Continue one or more prompts."""
    _require("torch")
    import time

    from app.output import STDOUT, check_writable, write_json
    from runtime.backend import run_requests
    from runtime.sequence import Request, SamplingParams
    from runtime.tokenizer import decode, load_tokenizer

    check_writable(json_file, "--json")
    if not prompt and not prompt_ids:
        raise InputError("there is nothing to continue; give --prompt TEXT or --prompt-ids 1,2,3")
    tokenizer = tokenizer_directory(options, tokenizer)
    say_what_is_missing(options, tokenizer)
    words = load_tokenizer(tokenizer)
    prompts = [words.encode(text) for text in prompt or ()] + [_token_ids(text) for text in prompt_ids or ()]
    with _backend(options) as backend:
        now_s = time.monotonic()
        outputs = run_requests(
            backend,
            [
                Request(
                    f"prompt {i + 1}",
                    tuple(tokens),
                    SamplingParams(max_tokens, temperature, top_k, top_p, seed + i, ignore_eos=ignore_eos),
                    now_s,
                )
                for i, tokens in enumerate(prompts)
            ],
        )
    rows = [
        {
            "prompt_token_ids": tokens,
            "token_ids": list(output.token_ids),
            "text": decode(words, output.token_ids),
            "finish_reason": output.finish_reason,
            "error": output.error,
            "ttft_s": times[0] - now_s if (times := output.timing.token_times_s) else None,
            "e2e_s": times[-1] - now_s if times else None,
        }
        for tokens, output in zip(prompts, outputs, strict=True)
    ]
    write_json(rows, json_file)
    if json_file != STDOUT:
        for row in rows:
            if row["error"] is None:
                typer.echo(row["text"])
    for output in outputs:
        if output.error is not None:
            typer.echo(f"moeplan: {output.request_id}: {output.error}", err=True)
    if any(output.error is not None for output in outputs):
        raise typer.Exit(EXIT_BAD_INPUT)


def _token_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--prompt-ids {text!r} is not a list of numbers; write for example 1,2,3") from None


@runtime_app.command()
@with_engine_options
def bench(
    options: EngineOptions,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", metavar="FILE", help="Azure CSV or Mooncake JSONL; without it Poisson arrivals."),
    ] = None,
    speed: Annotated[float, typer.Option(callback=above_zero, help="Replay this many times as fast.")] = 1.0,
    max_requests: Annotated[
        int | None, typer.Option(callback=whole_above_zero, help="Take only the first requests of the trace.")
    ] = None,
    length_scale: Annotated[
        float, typer.Option(callback=above_zero, help="Multiply the token counts of the trace.")
    ] = 1.0,
    rate: Annotated[float, typer.Option(callback=above_zero, help="Poisson: requests per second.")] = 1.0,
    num_requests: Annotated[int, typer.Option(callback=whole_above_zero, help="Poisson: requests.")] = 50,
    isl: Annotated[int, typer.Option(callback=whole_above_zero, help="Poisson: prompt tokens.")] = 128,
    osl: Annotated[int, typer.Option(callback=whole_above_zero, help="Poisson: output tokens.")] = 32,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of arrivals and prompts.")] = 0,
    json_file: JsonOutput = None,
) -> None:
    """Replay traffic in open loop; report TTFT, TPOT, end-to-end time and throughput."""
    _require("torch")
    from dataclasses import asdict

    from app.output import STDOUT, check_writable, progress_bar, stdout_console, write_json
    from app.render.runtime import replay_report
    from runtime.bench import replay, request_rows, summarize, warm_up
    from runtime.machine import machine_facts
    from runtime.trace import load_trace, poisson_trace

    check_writable(json_file, "--json")
    if trace is not None:
        requests = load_trace(trace, max_requests=max_requests, length_scale=length_scale)
    else:
        requests = poisson_trace(rate, num_requests, isl, osl, seed)
    with _backend(options) as backend, progress_bar() as progress:
        warm_up(backend)
        result = replay(backend, requests, speed=speed, seed=seed, progress=partial(progress, "requests"))
    summary = summarize(result)
    settings = {name: str(v) if isinstance(v, Path) else v for name, v in asdict(options).items()}
    source: dict[str, Any] = {"rate": rate, "isl": isl, "osl": osl} if trace is None else {"trace": str(trace)}
    report = {
        "machine": machine_facts(),
        "engine": settings,
        "workload": source | {"num_requests": len(requests), "speed": speed, "seed": seed},
        "summary": summary,
        "requests": request_rows(result),
    }
    write_json(report, json_file)
    if json_file != STDOUT:
        stdout_console().print(replay_report(summary))
    if summary["num_failed"]:
        raise typer.Exit(EXIT_NO_ANSWER)


@runtime_app.command()
@with_engine_options
def serve(
    options: EngineOptions,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=LAST_PORT, help="Port to listen on.")] = 8000,
    served_name: Annotated[
        str | None, typer.Option("--served-model-name", help="Model name in the API; else that of --model.")
    ] = None,
    tokenizer: TokenizerOption = None,
) -> None:
    """Serve OpenAI-compatible /v1/completions and /v1/chat/completions, and /metrics for Prometheus."""
    _require("torch", "fastapi", "uvicorn")
    import uvicorn

    from runtime.server import create_app
    from runtime.tokenizer import load_tokenizer

    tokenizer = tokenizer_directory(options, tokenizer)
    say_what_is_missing(options, tokenizer)
    words = load_tokenizer(tokenizer)
    name = served_name or Path(options.model).name
    app = create_app(build_backend(options), words, name)  # closes the backend when it shuts down
    uvicorn.run(app, host=host, port=port, log_level="info")
