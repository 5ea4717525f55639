"""Options of every command that builds an engine, and the engine they describe."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from app.commands.options import whole_above_zero
from app.errors import InputError

if TYPE_CHECKING:
    from runtime.backend import Backend
    from runtime.worker import WorkerSpec

DTYPES = ("float32", "bfloat16", "float16")


def _count(flag: str, help_text: str) -> Any:
    return typer.Option(flag, callback=whole_above_zero, help=help_text)


@dataclass(frozen=True)
class EngineOptions:
    """The fields are the options: name, default and help of each."""

    model: Annotated[
        str, typer.Option("--model", metavar="NAME|PATH", help="Preset, config.json, or checkpoint directory.")
    ] = "tiny-v4"
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="DIR", help="Safetensors; else those beside --model, else random."),
    ] = None
    weights_seed: Annotated[int, typer.Option("--weights-seed", min=0, help="Seed of random weights.")] = 0
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N; auto takes a GPU if there is one.")] = "auto"
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto"
    threads: Annotated[int, _count("--threads", "CPU threads of each worker.")] = 1
    disaggregated: Annotated[
        str | None,
        typer.Option("--disaggregated", metavar="P,D", help="P prefill and D decode worker processes."),
    ] = None
    num_blocks: Annotated[int, _count("--num-blocks", "KV blocks in the pool.")] = 256
    block_size: Annotated[int, _count("--block-size", "Tokens in a block.")] = 128
    max_num_seqs: Annotated[int, _count("--max-num-seqs", "Sequences in one step.")] = 16
    max_num_batched_tokens: Annotated[int, _count("--max-num-batched-tokens", "New tokens in one step.")] = 1024
    max_model_len: Annotated[
        int | None,
        typer.Option("--max-model-len", callback=whole_above_zero, help="Longest prompt and output; else the model's."),
    ] = None
    prefix_caching: Annotated[
        bool, typer.Option("--prefix-caching/--no-prefix-caching", help="Reuse the cache of equal prefixes.")
    ] = True


def with_engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command every field of EngineOptions as an option; it takes them as its first argument."""
    names = [field.name for field in fields(EngineOptions)]
    own = list(inspect.signature(command).parameters.values())[1:]
    shared = list(inspect.signature(EngineOptions).parameters.values())
    hints = get_type_hints(EngineOptions, include_extras=True) | get_type_hints(command, include_extras=True)

    @wraps(command)
    def run(**values: Any) -> None:
        options = EngineOptions(**{name: values.pop(name) for name in names})
        command(options, **values)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [p.replace(kind=keyword, annotation=hints[p.name]) for p in [*own, *shared]]
    vars(run)["__signature__"] = inspect.Signature(parameters)
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    del vars(run)["__wrapped__"]
    return run


def parse_disaggregated(text: str | None) -> tuple[int, int] | None:
    """
    >>> parse_disaggregated("2,1")
    (2, 1)
    """
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"--disaggregated {text!r} is not P,D; give two counts above 0, for example 1,1")
    return int(parts[0]), int(parts[1])


def worker_spec(options: EngineOptions) -> WorkerSpec:
    import torch

    from runtime.engine import EngineConfig
    from runtime.presets import load_model_config
    from runtime.worker import WorkerSpec

    if options.dtype not in ("auto", *DTYPES):
        raise InputError(f"--dtype {options.dtype!r} is not known; use auto, {', '.join(DTYPES)}")
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    _check_device(device)
    dtype = options.dtype
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    if options.weights is not None and not options.weights.is_dir():
        raise InputError(f"--weights {options.weights} is not a directory; give the folder of the safetensors files")
    weights = options.weights
    if weights is None and any(Path(options.model).glob("*.safetensors")):
        weights = Path(options.model)
    return WorkerSpec(
        load_model_config(options.model),
        EngineConfig(
            num_blocks=options.num_blocks,
            block_size=options.block_size,
            num_snapshots=options.max_num_seqs,
            max_num_seqs=options.max_num_seqs,
            max_num_batched_tokens=options.max_num_batched_tokens,
            max_model_len=options.max_model_len or 0,
            prefix_caching=options.prefix_caching,
        ),
        weights,
        options.weights_seed,
        device,
        getattr(torch, dtype),
        options.threads,
    )


def _check_device(device: str) -> None:
    import torch

    try:
        parsed = torch.device(device)
    except RuntimeError:
        raise InputError(f"--device {device!r} is not known; use cpu, cuda or cuda:N") from None
    if parsed.type not in ("cpu", "cuda"):
        raise InputError(f"--device {device!r} is not supported; use cpu, cuda or cuda:N")
    if parsed.type == "cuda" and (parsed.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {device} is not there: this machine has {torch.cuda.device_count()} GPUs; use cpu")


def build_backend(options: EngineOptions) -> Backend:
    """One engine in this process, or a proxy with its workers."""
    pair = parse_disaggregated(options.disaggregated)
    spec = worker_spec(options)
    if pair is None:
        return spec.build()
    from runtime.disaggregation import DisaggregatedConfig, DisaggregatedEngine

    return DisaggregatedEngine(spec, DisaggregatedConfig(*pair))
