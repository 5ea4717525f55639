"""Context-parallel prefill of DeepSeek-V4-Flash against numbers worked by hand."""

import pytest

from hw_profiles.catalog import load
from hw_profiles.efficiency import OpClass
from simulator.model.latency import NO_DECODE, Chunk, PricedOp, StepLatency
from simulator.model.memory import plan_memory
from simulator.model.parallelism import Parallelism
from simulator.model.presets import load_model

MODEL = load_model("deepseek-v4-flash")
PART = load("b200", "default")
CP8 = Parallelism(cp=8, ep=8)
LAST = Chunk(16_384, 983_616)  # the end of a prompt of a million tokens


def _ops(cut: Parallelism, chunk: Chunk) -> list[PricedOp]:
    return StepLatency(MODEL, PART, cut).breakdown([chunk], NO_DECODE)


def _named(ops: list[PricedOp], name: str) -> list[PricedOp]:
    found = [priced for priced in ops if priced.op.name == name]
    assert found
    return found


def test_each_rank_sends_its_part_of_the_new_rows_to_the_others() -> None:
    """Window rows of 584 B in 43 layers; compressor rows in f32: 2 x 2 x (512 + 128) x 4 B in 21 layers of ratio 4
    (overlapping blocks, main and index compressor), 2 x 512 x 4 B in 20 of ratio 128. An all-gather of R ranks
    sends (R - 1) / R of the whole. The past is on every rank already."""
    per_token = 43 * 584 + 21 * 10_240 + 20 * 4_096
    assert per_token == 322_072
    for chunk in (LAST, Chunk(16_384, 0)):
        sent = sum(p.op.count * p.op.network_bytes for p in _named(_ops(CP8, chunk), "gather keys"))
        assert sent == pytest.approx(7 / 8 * 16_384 * per_token)


def test_the_indexer_scores_an_eighth_of_the_pairs_on_each_rank() -> None:
    """Queries see (position + 1) / 4 keys each, rounded down: on average 247,952 less 3/8; 64 heads of 128 columns."""
    pairs = 16_384 * ((983_616 + 16_385 / 2) / 4 - 3 / 8)
    priced = _named(_ops(CP8, LAST), "index scores")
    flops = sum(p.op.count * sum(p.op.flops.values()) for p in priced)
    assert flops == pytest.approx(21 * 2 * 64 * 128 * pairs / 8, rel=1e-9)


def test_projections_take_as_long_as_those_of_an_eighth_of_the_tokens() -> None:
    def gemm_s(cut: Parallelism, chunk: Chunk) -> float:
        return sum(p.seconds for p in _ops(cut, chunk) if p.op.op_class is OpClass.DENSE_GEMM)

    alone = gemm_s(Parallelism(), Chunk(2_048, 0))
    assert gemm_s(CP8, LAST) == pytest.approx(alone)
    assert alone < gemm_s(Parallelism(), Chunk(16_384, 0)) / 5


def test_every_rank_keeps_the_whole_kv() -> None:
    one, eight = (plan_memory(MODEL, PART, cut, 8192) for cut in (Parallelism(dp=8, ep=8), CP8))
    assert eight.kv_bytes_per_token == one.kv_bytes_per_token
    assert eight.kv_bytes_per_sequence == one.kv_bytes_per_sequence
    assert eight.max_sequences(1_048_576) >= 1


def test_a_million_tokens_take_less_than_a_quarter_of_what_tensor_parallel_ranks_need() -> None:
    """Tensor-parallel ranks each score every pair of the indexer, context-parallel ones their own."""
    seconds = [StepLatency(MODEL, PART, cut).prefill_s([LAST], LAST.new) for cut in (Parallelism(tp=8, ep=8), CP8)]
    assert seconds[1] < seconds[0] / 4
