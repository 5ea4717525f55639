"""FLOPs and bytes of whole steps, against published and independently counted figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from support.hardware import decode_load, with_classes

from hw_profiles.catalog import load
from hw_profiles.efficiency import OpClass
from simulator.model import parameter_counts as counts
from simulator.model.attention import HEAD_TILE
from simulator.model.latency import NO_DECODE, Chunk, DecodeLoad, PricedOp, StepLatency
from simulator.model.ops import Op
from simulator.model.parallelism import Parallelism
from simulator.model.presets import load_model

# GFLOP of one decoded token at context 8k, 64k, 256k, 1M (arXiv 2606.19348 shapes, counted by hand per op).
DECODE_GFLOP = {
    "deepseek-v4-flash": (29.6, 35.8, 56.9, 141.4),
    "deepseek-v4-pro": (109.4, 120.2, 157.1, 304.8),
    "deepseek-v3.2": (117.9, 175.2, 371.7, 1157.7),
}
CONTEXTS = (8192, 65536, 262144, 1048576)
# TFLOP of a chunk of 8192 tokens after 0 and 128k.
PREFILL_TFLOP = {"deepseek-v4-flash": (228.5, 345.4), "deepseek-v4-pro": (858.2, 1076.4)}
# "Equivalent FP8 FLOPs" of the V4 paper: fp4 counts half, bf16 (and tf32) double.
FP8_EQUIVALENT = {"fp4": 0.5, "fp8": 1.0, "bf16": 2.0, "tf32": 2.0}


def _step(name: str, cut: Parallelism | None = None, gpu: str = "b200", drafts: int = 0) -> StepLatency:
    return StepLatency(load_model(name), load(gpu), cut or Parallelism(), drafts)


def _flops(priced: list[PricedOp]) -> Counter[str]:
    total: Counter[str] = Counter()
    for op, _, _ in priced:
        for dtype, flops in op.flops.items():
            total[dtype] += flops * op.count  # type: ignore[assignment]  # real counts
    return total


@pytest.fixture
def decode_flops() -> Callable[[str, int], Counter[str]]:
    def counted(name: str, context: int) -> Counter[str]:
        latency = _step(name)
        return _flops(latency.breakdown([], decode_load(latency, [context])))

    return counted


@pytest.mark.parametrize("name", DECODE_GFLOP)
def test_decode_flops_of_one_token(name: str, decode_flops: Callable[[str, int], Counter[str]]) -> None:
    for context, gflop in zip(CONTEXTS, DECODE_GFLOP[name], strict=True):
        assert decode_flops(name, context).total() / 1e9 == pytest.approx(gflop, rel=0.01)


@pytest.mark.parametrize("name", PREFILL_TFLOP)
def test_prefill_flops_of_a_chunk(name: str) -> None:
    latency = _step(name)
    for past, tflop in zip((0, 131072), PREFILL_TFLOP[name], strict=True):
        total = _flops(latency.breakdown([Chunk(8192, past)], NO_DECODE)).total()
        assert total / 1e12 == pytest.approx(tflop, rel=0.01)


@pytest.mark.parametrize(("name", "share"), [("deepseek-v4-pro", 0.27), ("deepseek-v4-flash", 0.10)])
def test_equivalent_flops_at_1m_context_against_v32(
    name: str, share: float, decode_flops: Callable[[str, int], Counter[str]]
) -> None:
    """Published: 27% (Pro) and 10% (Flash) of DeepSeek-V3.2."""

    def weighted(model: str) -> float:
        return sum(FP8_EQUIVALENT[dtype] * flops for dtype, flops in decode_flops(model, 1048576).items())

    assert weighted(name) / weighted("deepseek-v3.2") == pytest.approx(share, rel=0.02)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3-235b-a22b", "deepseek-v3", "gpt-oss-120b", "minimax-m2"])
def test_linear_flops_are_twice_the_active_parameters(
    name: str, decode_flops: Callable[[str, int], Counter[str]]
) -> None:
    """At a context of one token attention is negligible; norms and biases multiply nothing."""
    model = load_model(name)
    assert decode_flops(name, 1).total() == pytest.approx(2 * counts.params_active_no_embedding(model), rel=0.01)


def test_hand_worked_llama_attention() -> None:
    """Llama 3.1 8B, 32 layers, 32 heads of 128, 8 KV heads: 4 * 32 * 128 FLOPs and 4096 B per token and layer."""
    latency = _step("llama-3.1-8b")
    core = next(p.op for p in latency.breakdown([], decode_load(latency, [1000])) if p.op.name == "attention core")
    assert core.count == 32
    assert core.flops["bf16"] == 4 * 32 * 128 * 1000
    assert core.hbm_bytes == 1000 * 2 * 8 * 128 * 2 + 32 * 256 * 2


@pytest.mark.parametrize("name", ["deepseek-v4-flash", "deepseek-v3", "qwen3-235b-a22b", "gpt-oss-120b"])
def test_a_large_batch_reads_every_weight_once(
    name: str,
) -> None:
    """Bytes of projections and experts at batch b, less what grows with b, are the stored weights."""
    model = load_model(name)
    latency = _step(name)
    grouped = ("dense_gemm", "grouped_gemm")

    def bytes_at(batch: int) -> float:
        priced = latency.breakdown([], decode_load(latency, [1] * batch))
        return sum(p.op.count * p.op.hbm_bytes for p in priced if p.op.op_class in grouped)

    # far beyond the batch that touches all experts, bytes are weights + slope * batch
    slope = (bytes_at(40_000) - bytes_at(20_000)) / 20_000
    stored = counts.weight_bytes(model) - (0 if model.tied_embedding else model.embedding.weight_bytes)
    assert bytes_at(20_000) - 20_000 * slope == pytest.approx(stored, rel=0.01)


def _stage_flops(name: str, cut: Parallelism, decode_load: Callable[..., DecodeLoad], leave_out: set[str]) -> float:
    latency = _step(name, cut, gpu="gb200")
    contexts = [4096] * (64 // cut.dp)
    priced = latency.breakdown([], decode_load(latency, contexts))
    return cut.stage_size * _flops([p for p in priced if p.op.name not in leave_out]).total()


@pytest.mark.parametrize(
    "cut",
    [
        Parallelism(tp=8),
        Parallelism(tp=4, ep=4),
        Parallelism(dp=8, ep=8),
        Parallelism(dp=4),
        Parallelism(tp=2, dp=4, ep=8),
        Parallelism(tp=2, dp=4, ep=2),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["qwen3-235b-a22b", "deepseek-v3", "deepseek-v4-flash"])
def test_splits_conserve_flops_over_ranks(
    name: str,
    cut: Parallelism,
) -> None:
    """Ranks together multiply what one accelerator would, but for what tensor-parallel ranks do in copies and for
    tiles of fewer heads than they have rows."""
    copied = {"index scores", "mHC pre", "mHC post", "final norm"} | {
        linear.name
        for layer in load_model(name).layers
        for linear in (*layer.attention.linears, *layer.ffn.linears)
        if linear.shard == "replicated"
    }
    leave_out = copied if cut.tp > 1 else set()
    if name == "qwen3-235b-a22b" and cut.tp > 4:
        leave_out |= {"k_proj", "v_proj"}  # 4 KV heads
    if load_model(name).layers[0].attention.heads < cut.tp * HEAD_TILE:
        leave_out |= {"attention core"}
    whole = _stage_flops(name, Parallelism(), decode_load, leave_out)
    assert _stage_flops(name, cut, decode_load, leave_out) == pytest.approx(whole, rel=1e-6)


def test_context_parallel_ranks_split_prefill() -> None:
    chunk = [Chunk(32768, 0)]
    whole = _flops(_step("deepseek-v4-flash").breakdown(chunk, NO_DECODE)).total()
    cut = Parallelism(cp=4, ep=4)
    split = _step("deepseek-v4-flash", cut).breakdown(chunk, NO_DECODE)
    assert 4 * _flops(split).total() == pytest.approx(whole, rel=0.001)  # the LM head is copied
    assert any(p.op.name == "gather keys" for p in split)


def test_chunked_prefill_pays_for_decompression_of_the_past() -> None:
    """MLA: each later chunk rebuilds keys and values of all tokens before it, 2 * 512 * 128 * 256 FLOPs each."""
    latency = _step("deepseek-v3")
    priced = latency.breakdown([Chunk(4096, 10_000)], NO_DECODE)
    flops = _flops([p for p in priced if p.op.name == "decompress latents"])
    assert flops["fp8"] == 61 * 2 * 10_000 * 512 * 128 * 256


def test_every_prefilled_token_passes_the_layers_but_one_the_head() -> None:
    latency = _step("llama-3.1-8b")
    priced = latency.breakdown([Chunk(1000, 0), Chunk(24, 512)], NO_DECODE)
    head = next(p.op for p in priced if p.op.name == "lm_head")
    q_proj = next(p.op for p in priced if p.op.name == "q_proj")
    assert head.flops["bf16"] == 2 * 2 * 4096 * 128256
    assert q_proj.flops["bf16"] == 2 * 1024 * 4096 * 4096


def test_drafts_run_their_layers_and_verify_more_rows() -> None:
    plain, drafting = _step("deepseek-v4-flash"), _step("deepseek-v4-flash", drafts=2)
    one = _flops(plain.breakdown([], decode_load(plain, [8192]))).total()
    two = _flops(drafting.breakdown([], decode_load(drafting, [8192]))).total()
    model = load_model("deepseek-v4-flash")
    assert model.draft is not None
    per_draft = sum(2 * x.params * x.rows_per_token for x in (*model.draft.linears, model.lm_head))
    layer = model.draft.layers[0]
    linears = sum(x.params for x in (*layer.attention.linears, *layer.ffn.linears))
    per_draft += 2 * (linears + layer.ffn.experts_per_token * layer.ffn.expert_params)
    assert two == pytest.approx(3 * one + 2 * per_draft, rel=0.01)


def _core(priced: list[PricedOp]) -> Op:
    return next(p.op for p in priced if p.op.name == "attention core")


@pytest.mark.parametrize("tp", [1, 8])
def test_rows_of_sparse_prefill_gather_their_own_entries(tp: int) -> None:
    """HCA after a million tokens: 1,024 rows with 7,812 to 7,820 entries of 584 bytes and 128 of the window each,
    however many heads the rank has; a twentieth more for queries and results."""
    latency = _step("deepseek-v4-pro", Parallelism(tp=tp))
    priced = latency.breakdown([Chunk(1024, 1_000_000)], NO_DECODE)
    most = max(p.op.hbm_bytes for p in priced if p.op.name == "attention core")
    assert most == pytest.approx(1024 * (7816 + 128) * 584, rel=0.06)


def test_what_a_sparse_row_costs_beyond_its_entries_it_costs_once() -> None:
    """With 128 heads the entries of a row are multiplied in two tiles of 64, what a row takes beside them in one."""

    def cores(tp: int) -> list[Op]:
        priced = _step("deepseek-v4-pro", Parallelism(tp=tp)).breakdown([Chunk(4096, 0)], NO_DECODE)
        return [p.op for p in priced if p.op.name == "attention core"]

    for two, one, narrow in zip(cores(1), cores(2), cores(8), strict=True):
        assert two.flops["bf16"] == 2 * one.flops["bf16"] == 2 * narrow.flops["bf16"]
        assert two.row_flops == one.row_flops == narrow.row_flops == 2 * 64 * 1024 * (4096 + 48)


def test_choices_of_short_rows_take_their_factor() -> None:
    """A prompt of 8,192 tokens in V4-Pro: rows with 1,025 to 2,048 entries choose, each score is read in 4 bytes."""
    entries = sum(p // 4 for p in range(1, 8193) if 1024 < p // 4 <= 2048)
    plain, slow = with_classes(load("b200")), with_classes(load("b200"), short_row_factor=100.0)
    chunk = [Chunk(8192, 0)]
    before, after = (
        StepLatency(load_model("deepseek-v4-pro"), part, Parallelism()).breakdown(chunk, NO_DECODE)
        for part in (plain, slow)
    )
    found = [
        (a.op, a.seconds - b.seconds) for b, a in zip(before, after, strict=True) if a.seconds > b.seconds * (1 + 1e-9)
    ]
    assert {op.name for op, _ in found} == {"top-k of index scores"}
    rates = plain.efficiency.classes[OpClass.SELECTION]
    each = 99 * entries * 4 / (plain.memory_bandwidth * rates.memory_fraction)
    layers = sum(layer.attention.indexer is not None for layer in load_model("deepseek-v4-pro").layers)
    assert sum(more for _, more in found) == pytest.approx(layers * each, rel=1e-9)
    latency = StepLatency(load_model("deepseek-v4-pro"), slow, Parallelism())
    assert latency.prefill_s(chunk) == pytest.approx(sum(p.seconds for p in after), rel=1e-9)


def test_compiled_decode_adds_up_with_ragged_tiles() -> None:
    part = with_classes(load("b200"), tile_rows=200.0, memory_fraction_by={"bf16": 0.5})
    for name in ("deepseek-v3", "gpt-oss-120b", "deepseek-v4-pro"):
        latency = StepLatency(load_model(name), part, Parallelism(dp=8, ep=8))
        for contexts in ([700] * 300, [90_000] * 7):
            load_ = decode_load(latency, contexts)
            total = sum(p.seconds for p in latency.breakdown([], load_))
            assert latency.decode_s(load_) == pytest.approx(total, rel=1e-9)
