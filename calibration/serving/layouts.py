"""How a pool of accelerators was cut into workers, read from its label; labels that do not say it are refused."""

from __future__ import annotations

import re
from dataclasses import dataclass

WIDEST_TENSOR = 16  # ranks; assumed: wider workers run attention data-parallel, whatever their label lost
WIDEST_UNSAID = 8  # accelerators; assumed: so many without a label are one tensor-parallel worker, more are not guessed

WORKERS = re.compile(r"\s*(\d+)\s*x\s*\((.*)\)\s*")
REMARK = re.compile(r"\([^()]*\)")
LOSSY = re.compile(r"as printed|not recorded")
SIZE = re.compile(r"\b(DEP|P?CP|TP|DP|EP|PP) ?(\d+)\b(?!attn)")
OF_EXPERTS = re.compile(r"\bMoE-TP ?\d+\b", re.IGNORECASE)  # sizes that attention's say anyway
DATA_PARALLEL = re.compile(r"\bDPattn\b|\bdp-attention\b|\bADP\b", re.IGNORECASE)
EXPERT_PARALLEL = re.compile(r"\bDeepEP\b|\bMegaMoE\b|\bEP\b(?! ?\d)", re.IGNORECASE)  # token exchange between experts
WITHOUT_MEANING = re.compile(r"\battention\b|\bMarlin\b|\bMXFP4\b|\bper (worker|role)\b|\bx\b|[-/,\s]", re.IGNORECASE)
FLAGS = {
    "tp-size": "TP{}", "tensor-parallel-size": "TP{}", "dp-size": "DP{}", "data-parallel-size": "DP{}",
    "ep-size": "EP{}", "expert-parallel-size": "EP{}", "pp-size": "PP{}", "pipeline-parallel-size": "PP{}",
    "enable-dp-attention": "", "enable-expert-parallel": "EP", "moe-a2a-backend": "{}", "deepep-mode": "",
    "mem-fraction-static": "", "kv-cache-dtype": "", "chunked-prefill-size": "", "max-running-requests": "",
}  # fmt: skip
FLAG = re.compile(r"--([a-z0-9-]+)(?:[= ](?!--)(\S+))?")


class LayoutError(ValueError):
    """A label that does not say how its workers are cut; one sentence."""


@dataclass(frozen=True)
class WorkerLayout:
    """Instances of one pool: how many, their accelerators, and how the model is cut."""

    count: int
    gpus: int
    data_parallel: bool  # attention ranks hold sequences of their own
    expert_parallel: bool
    stages: int = 1  # of a pipeline
    context_ranks: int = 1  # that share the attention of one prompt
    attention_ranks: int | None = None  # with sequences of their own; None: one, or every accelerator of a stage


@dataclass(frozen=True)
class Label:
    """What a label says, as 'count x (sizes, remarks)'. gpus: of one worker, 0 where it does not say."""

    text: str
    count: int | None
    gpus: int
    data_parallel: bool
    expert_parallel: bool
    stages: int
    context_ranks: int

    @property
    def per_worker(self) -> bool:
        return "per worker" in self.text


def read_label(text: str) -> Label:
    """A label such as '2x(TP8 EP8 DPattn)', 'TP4/DP4 dp-attention, DeepEP EP4', 'PP2 x TP8' or the flags of an engine.

    >>> read_label("2x(TP8 EP8 DPattn)").gpus, read_label("PP2 x attention-CP8 / MoE-TP8").gpus
    (8, 16)
    """
    if LOSSY.search(text):
        raise LayoutError("the layout is as printed or recorded in part, which does not say how workers are cut")
    outer = WORKERS.fullmatch(text)
    inner = OF_EXPERTS.sub(" ", REMARK.sub(" ", _without_flags(outer[2] if outer else text)))
    sizes: dict[str, int] = {}
    for name, size in SIZE.findall(inner):
        sizes[name.removeprefix("P") if name == "PCP" else name] = int(size)
    rest = SIZE.sub(" ", inner)
    for known in (DATA_PARALLEL, EXPERT_PARALLEL, WITHOUT_MEANING):
        rest = known.sub(" ", rest)
    if rest.strip():
        raise LayoutError(f"layout {text!r} is not understood at {rest.strip()!r}; write it as in '2x(TP8 EP8 DPattn)'")
    tensor, data, expert, dep = (sizes.get(name, 0) for name in ("TP", "DP", "EP", "DEP"))
    stages, context = sizes.get("PP", 1), sizes.get("CP", 1)
    both = tensor * data if tensor != data else tensor  # 'TP4/DP4' is one group of four
    ranks = max(dep, tensor, data, expert, both)
    if context > 1 or stages > 1:
        ranks = max(ranks, 1) * context * stages
    return Label(
        text,
        int(outer[1]) if outer else None,
        ranks,
        bool(DATA_PARALLEL.search(inner)) or dep > 0 or data > 1,
        expert > 1 or dep > 0 or bool(EXPERT_PARALLEL.search(inner)),
        stages,
        context,
    )


def _without_flags(text: str) -> str:
    """Flags of SGLang and vLLM as sizes. SGLang's attention is data-parallel where `--dp-size` is beside
    `--enable-dp-attention`, which by itself does nothing."""

    def replaced(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name not in FLAGS:
            raise LayoutError(f"flag --{name} of a layout is not understood")
        return FLAGS[name].format(value)

    return FLAG.sub(replaced, text)


def parse_worker(label: Label, pool_gpus: int) -> WorkerLayout:
    """A pool of `pool_gpus` accelerators by its label.

    Worker size is the pool over the worker count; labels that lost their TP size ('TP1' on many accelerators) are
    read as data-parallel attention over the worker.

    >>> found = parse_worker(read_label("4x(TP1 EP1 DPattn)"), 32)
    >>> found.count, found.gpus, found.data_parallel, found.expert_parallel
    (4, 8, True, True)
    """
    if not label.text and pool_gpus > WIDEST_UNSAID:
        raise LayoutError(f"no label says how {pool_gpus} accelerators are cut")
    count = label.count
    if count is None:
        count = pool_gpus // label.gpus if label.gpus > 1 and pool_gpus % label.gpus == 0 else 1
    if count < 1 or pool_gpus % count:
        raise LayoutError(f"{count} workers do not divide {pool_gpus} accelerators ({label.text!r})")
    gpus = pool_gpus // count
    if label.gpus > 1 and gpus != label.gpus:
        raise LayoutError(f"a worker of {gpus} accelerators is not one of {label.gpus} ({label.text!r})")
    lost = label.gpus == 1 and gpus > 1
    data = label.data_parallel or lost or gpus // (label.stages * label.context_ranks) > WIDEST_TENSOR
    expert = label.expert_parallel or lost
    return WorkerLayout(count, gpus, data and gpus > 1, expert and gpus > 1, label.stages, label.context_ranks)
