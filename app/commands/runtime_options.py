"""Options of every command that builds an engine, and the engine they describe."""

from __future__ import annotations

import inspect
import re
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
    dequantize: Annotated[
        bool, typer.Option("--dequantize", help="Expand fp8 and fp4 weights instead of serving them as stored.")
    ] = False
    kv_cache_dtype: Annotated[
        str, typer.Option("--kv-cache-dtype", help="auto (as the checkpoint says), model or fp8.")
    ] = "auto"
    index_dtype: Annotated[
        str, typer.Option("--index-dtype", help="Keys of V4's indexer: auto (as the checkpoint says), model or fp4.")
    ] = "auto"
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:N or cuda:N-M, one a rank in turn; auto takes GPUs if there are any.")
    ] = "auto"
    tp: Annotated[int, _count("--tp", "Tensor-parallel ranks of each replica.")] = 1
    dp: Annotated[int, _count("--dp", "Replicas of an instance, each with requests and KV of its own.")] = 1
    ep: Annotated[int, _count("--ep", "Ranks that share the experts: 1, or all of an instance (tp x dp).")] = 1
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto"
    threads: Annotated[int, _count("--threads", "CPU threads of each worker.")] = 1
    disaggregated: Annotated[
        str | None,
        typer.Option("--disaggregated", metavar="P,D", help="P prefill and D decode worker processes."),
    ] = None
    draft_tokens: Annotated[
        int, typer.Option("--draft-tokens", min=0, help="Guessed by the MTP layer for each step: 0 or 1.")
    ] = 0
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


def weights_directory(options: EngineOptions) -> Path | None:
    """--weights, else --model where it is a directory with safetensors."""
    if options.weights is None and any(Path(options.model).glob("*.safetensors")):
        return Path(options.model)
    return options.weights


def tokenizer_directory(options: EngineOptions, given: Path | None) -> Path | None:
    """--tokenizer, else the folder of the weights or of the model if a tokenizer lies there."""
    from runtime.tokenizer import has_tokenizer

    model = Path(options.model)
    beside = (weights_directory(options), model if model.is_dir() else model.parent if model.is_file() else None)
    return given or next((folder for folder in beside if folder is not None and has_tokenizer(folder)), None)


def say_what_is_missing(options: EngineOptions, tokenizer: Path | None) -> None:
    """On stderr, what of a real model is made up; presets are made up throughout, and say so in their name."""
    if not Path(options.model).exists():
        return
    if weights_directory(options) is None:
        typer.echo(
            f"moeplan: no safetensors beside {options.model} and no --weights: weights are random "
            f"(seed {options.weights_seed}) and so is what they say",
            err=True,
        )
    if tokenizer is None:
        typer.echo(
            f"moeplan: no tokenizer beside {options.model} and no --tokenizer: bytes of text are token ids", err=True
        )


def worker_spec(options: EngineOptions) -> WorkerSpec:
    import torch

    from runtime.config.parallel import Parallelism
    from runtime.engine import EngineConfig
    from runtime.presets import load_model_config
    from runtime.worker import WorkerSpec

    if options.dtype not in ("auto", *DTYPES):
        raise InputError(f"--dtype {options.dtype!r} is not known; use auto, {', '.join(DTYPES)}")
    instances = parse_disaggregated(options.disaggregated) or (1, 0)
    parallel = Parallelism(options.tp, options.dp, options.ep)
    devices = _devices(options.device, sum(instances) * parallel.num_ranks)
    device = devices[0]
    dtype = options.dtype
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    if options.weights is not None and not options.weights.is_dir():
        raise InputError(f"--weights {options.weights} is not a directory; give the folder of the safetensors files")
    config = load_model_config(options.model)
    parallel.check(config)
    return WorkerSpec(
        config,
        EngineConfig(
            num_blocks=options.num_blocks,
            block_size=options.block_size,
            num_snapshots=options.max_num_seqs,
            max_num_seqs=options.max_num_seqs,
            max_num_batched_tokens=options.max_num_batched_tokens,
            max_model_len=options.max_model_len or 0,
            prefix_caching=options.prefix_caching,
            kv_cache_dtype=options.kv_cache_dtype,
            index_dtype=options.index_dtype,
            draft_tokens=options.draft_tokens,
        ),
        weights_directory(options),
        options.weights_seed,
        device,
        getattr(torch, dtype),
        options.threads,
        parallel,
        devices,
        options.dequantize,
    )


def _devices(text: str, count: int) -> tuple[str, ...]:
    """A device for each of `count` ranks: the CPU for all, or GPUs in turn."""
    import torch

    present = torch.cuda.device_count()
    if text == "cpu" or (text == "auto" and not present):
        return ("cpu",) * count
    match = re.fullmatch(r"(?:auto|cuda)|cuda:(\d+)(?:-(\d+))?", text)
    if match is None:
        raise InputError(f"--device {text!r} is not known; use cpu, cuda, cuda:N or cuda:N-M")
    first = int(match[1] or 0)
    last = int(match[2]) if match[2] else first if match[1] and count == 1 else first + count - 1
    if last - first + 1 != count:
        raise InputError(
            f"--device {text} names {max(0, last - first + 1)} GPUs, but {count} ranks need one each; "
            f"use cuda:{first}-{first + count - 1}, or change --tp, --dp or --disaggregated"
        )
    if last >= present:
        raise InputError(f"--device {text} is not there: this machine has {present} GPUs; use cpu")
    return tuple(f"cuda:{index}" for index in range(first, last + 1))


def build_backend(options: EngineOptions) -> Backend:
    """One engine in this process, or a proxy with its workers."""
    pair = parse_disaggregated(options.disaggregated)
    spec = worker_spec(options)
    if pair is None:
        return spec.build()
    from runtime.disaggregation import DisaggregatedConfig, DisaggregatedEngine

    return DisaggregatedEngine(spec, DisaggregatedConfig(*pair))
