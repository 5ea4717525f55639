"""Options that say what a benchmark measured, where its result does not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands.options import whole_above_zero

if TYPE_CHECKING:
    from calibration.results.point_rows import Setup

PointInputs = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE...",
        help="Measured points (CSV; docs/validation.md names the columns), or results as vllm bench serve, "
        "sglang.bench_serving, AIPerf, genai-perf, guidellm, TensorRT-LLM or InferenceX write them.",
    ),
]
CommandInput = Annotated[
    list[str] | None,
    typer.Option(
        "--command",
        metavar="LINE",
        help="Launch line of the server, or a file with it or with the start-up log; one each for prefill and decode.",
    ),
]
GpuInput = Annotated[str | None, typer.Option("--gpu", help="Accelerator, where results do not say it.")]


def _count(flag: str, text: str) -> Any:
    return typer.Option(flag, metavar="N", help=text, callback=whole_above_zero)


GpusInput = Annotated[int | None, _count("--n-gpu", "Accelerators in all.")]
PrefillGpusInput = Annotated[int | None, _count("--n-prefill-gpu", "Accelerators of prefill.")]
DecodeGpusInput = Annotated[int | None, _count("--n-decode-gpu", "Accelerators of decode.")]
TpInput = Annotated[int | None, _count("--tp", "Tensor-parallel size of an instance, as its engine counts it.")]
DpInput = Annotated[int | None, _count("--dp", "Attention ranks that hold sequences of their own.")]
EpInput = Annotated[int | None, _count("--ep", "Expert-parallel size.")]
PpInput = Annotated[int | None, _count("--pp", "Pipeline-parallel size.")]
EngineInput = Annotated[str | None, typer.Option("--engine", help="vLLM, SGLang, TensorRT-LLM, ...")]
ModelInput = Annotated[str | None, typer.Option("--model", help="Model, where results do not say it.")]
PrecisionInput = Annotated[str | None, typer.Option("--precision", help="FP8, NVFP4, BF16, INT4.")]


def setup_of(command: list[str] | None, **given: Any) -> Setup:
    """What the options say. A command that is the name of a file stands for its text."""
    from calibration.results.point_rows import Setup

    lines, folder = [], Path()
    for text in command or ():
        path = Path(text)
        if len(text) < 4096 and "\n" not in text and path.is_file():
            folder = path.parent
            text = path.read_text(encoding="utf-8")
        lines.append(text)
    return Setup(commands=tuple(lines), folder=folder, **given)
