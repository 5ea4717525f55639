"""The scheduler against a ledger that writes down what every block and slot holds."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.block_manager import BlockManager, SlotCopy, SlotOp, SlotReset
from runtime.scheduler import ScheduledStep, Scheduler, SchedulerConfig
from runtime.sequence import Request, SamplingParams, Sequence

BLOCK = 4


class Ledger:
    """Holds tokens where a model would hold keys: block contents, and the state as all tokens seen so far."""

    def __init__(self, blocks: BlockManager) -> None:
        self.blocks = [[-1] * BLOCK for _ in range(blocks.num_blocks)]
        self.slots: list[tuple[int, ...]] = [(-1,)] * blocks.num_slots

    def move(self, ops: list[SlotOp]) -> None:
        for op in ops:
            if isinstance(op, SlotReset):
                self.slots[op.slot] = ()
            elif isinstance(op, SlotCopy):
                self.slots[op.target] = self.slots[op.source]

    def run(self, step: ScheduledStep) -> None:
        self.move(step.slot_ops)
        for chunk in step.chunks:
            sequence = chunk.sequence
            seen = [self.blocks[sequence.block_ids[i // BLOCK]][i % BLOCK] for i in range(chunk.past)]
            assert seen == sequence.token_ids[: chunk.past], "cached tokens are not this sequence's"
            new = sequence.token_ids[chunk.past : chunk.past + chunk.new]
            if sequence.slot is not None:
                assert self.slots[sequence.slot] == tuple(seen), "slot state does not belong to these tokens"
                self.slots[sequence.slot] = tuple(seen + new)
            for i, token in enumerate(new, start=chunk.past):
                self.blocks[sequence.block_ids[i // BLOCK]][i % BLOCK] = token


def make_scheduler(
    num_blocks: int, num_slots: int = 0, caching: bool = True, seqs: int = 4, tokens: int = 16
) -> Scheduler:
    return Scheduler(SchedulerConfig(seqs, tokens), BlockManager(num_blocks, BLOCK, num_slots, caching))


def make_sequence(name: str, prompt: list[int], max_tokens: int) -> Sequence:
    return Sequence(Request(name, tuple(prompt), SamplingParams(max_tokens, seed=0), 0.0), BLOCK)


def run_step(scheduler: Scheduler, ledger: Ledger) -> ScheduledStep:
    step = scheduler.schedule()
    ledger.run(step)
    ledger.move(scheduler.complete(step))
    for chunk in step.chunks:
        sequence = chunk.sequence
        if chunk.samples:
            sequence.token_ids.append(sum(sequence.token_ids) % 7)
            if sequence.finish_reason_after(()):
                scheduler.finish(sequence)
        scheduler.blocks.check_consistency()
    return step


def run_all(scheduler: Scheduler, sequences: list[Sequence]) -> list[ScheduledStep]:
    ledger, steps = Ledger(scheduler.blocks), []
    for sequence in sequences:
        scheduler.add(sequence)
    while scheduler.has_work:
        steps.append(run_step(scheduler, ledger))
        assert steps[-1].chunks, "work is waiting but nothing was scheduled"
    return steps


def plan(step: ScheduledStep) -> list[tuple[str, int, int]]:
    return [(chunk.sequence.request_id, chunk.past, chunk.new) for chunk in step.chunks]


def test_long_prompt_is_split_at_the_budget_while_others_decode_first() -> None:
    scheduler = make_scheduler(32, caching=False, tokens=8)
    steps = run_all(scheduler, [make_sequence("a", [1] * 5, 4), make_sequence("b", [2] * 14, 2)])
    assert [plan(step) for step in steps] == [
        [("a", 0, 5), ("b", 0, 3)],
        [("a", 5, 1), ("b", 3, 7)],
        [("a", 6, 1), ("b", 10, 4)],
        [("a", 7, 1), ("b", 14, 1)],
    ]


def test_last_come_is_preempted_first_and_computed_again() -> None:
    # 4 blocks of 4 tokens: both prompts take 2 blocks each; the first decode past token 8 evicts the later.
    scheduler = make_scheduler(4, caching=False)
    first, second = make_sequence("first", [1] * 7, 6), make_sequence("second", [2] * 7, 6)
    steps = run_all(scheduler, [first, second])
    assert [s.request_id for step in steps for s in step.preempted] == ["second"]
    assert (first.num_preemptions, second.num_preemptions) == (0, 1)
    recompute = next(chunk for step in steps[1:] for chunk in step.chunks if chunk.past == 0)
    assert recompute.sequence is second
    assert recompute.new > second.num_prompt, "prompt and what it had put out"
    assert first.num_output == second.num_output == 6


def test_a_newcomer_leaves_room_for_those_that_run() -> None:
    """200 blocks of 4 tokens: 1% are 2 blocks. A prompt of 7 takes 2 blocks, one of 8 a third for its next token."""
    scheduler = make_scheduler(200, caching=False, tokens=2000)
    for name, prompt in (("first", 4 * 193), ("seven", 7), ("eight", 8)):
        scheduler.add(make_sequence(name, [1] * prompt, 2))
    step = scheduler.schedule()
    assert plan(step) == [("first", 0, 772), ("seven", 0, 7)]
    assert scheduler.blocks.num_free_blocks == 4, "with the third sequence only one would be left"
    for sequence in (*scheduler.running, *scheduler.waiting):
        scheduler.finish(sequence)


def test_max_num_seqs_bounds_the_batch_and_order_is_first_come_first_served() -> None:
    scheduler = make_scheduler(64, seqs=2)
    steps = run_all(scheduler, [make_sequence(str(i), [i] * 3, 2) for i in range(5)])
    assert max(len(step.chunks) for step in steps) == 2
    first_seen = list(dict.fromkeys(chunk.sequence.request_id for step in steps for chunk in step.chunks))
    assert first_seen == ["0", "1", "2", "3", "4"]


def test_shared_prefix_is_computed_once_when_everything_lies_in_blocks() -> None:
    scheduler = make_scheduler(32)
    prefix = [5, 6, 7, 8, 9, 1, 2, 3]
    run_all(scheduler, [make_sequence("a", [*prefix, 1, 2], 1)])
    second = make_sequence("b", [*prefix, 3, 4, 5], 1)
    steps = run_all_with_contents(scheduler, second)
    assert plan(steps[0]) == [("b", 8, 3)]
    assert second.num_cached == 8


def run_all_with_contents(scheduler: Scheduler, sequence: Sequence) -> list[ScheduledStep]:
    """Run one more sequence without a fresh ledger's check of old contents."""
    scheduler.add(sequence)
    steps = []
    while scheduler.has_work:
        step = scheduler.schedule()
        steps.append(step)
        scheduler.complete(step)
        for chunk in step.chunks:
            if chunk.samples:
                chunk.sequence.token_ids.append(0)
                if chunk.sequence.finish_reason_after(()):
                    scheduler.finish(chunk.sequence)
    return steps


def test_a_whole_cached_prompt_still_computes_one_token_for_its_logits() -> None:
    scheduler = make_scheduler(32)
    prompt = [1, 2, 3, 4, 5, 6, 7, 8]
    run_all(scheduler, [make_sequence("a", prompt, 1)])
    assert plan(run_all_with_contents(scheduler, make_sequence("b", prompt, 1))[0]) == [("b", 4, 4)]


def test_with_state_a_prefix_resumes_only_where_a_snapshot_was_kept() -> None:
    scheduler = make_scheduler(64, num_slots=8)
    common = [5, 6, 7, 8, 9, 1, 2, 3]
    a, b, c = (make_sequence(name, common + [i] * 6, 1) for i, name in enumerate("abc", start=10))
    ledger = Ledger(scheduler.blocks)
    plans = []
    for sequence in (a, b, c):
        scheduler.add(sequence)
        while scheduler.has_work:
            plans.append(plan(run_step(scheduler, ledger)))
    assert plans == [
        [("a", 0, 12)],  # ends at the last block boundary of the prompt: snapshot there
        [("a", 12, 2)],
        [("b", 0, 8)],  # 8 tokens are known but have no snapshot: all computed, snapshot kept this time
        [("b", 8, 4)],
        [("b", 12, 2)],
        [("c", 8, 4)],  # resumes at the shared boundary
        [("c", 12, 2)],
    ]
    assert (a.num_cached, b.num_cached, c.num_cached) == (0, 0, 8)


def test_snapshots_yield_to_running_sequences_and_go_with_their_block() -> None:
    scheduler = make_scheduler(4, num_slots=2, seqs=2)
    run_all(scheduler, [make_sequence("a", [1] * 8, 1)])
    assert scheduler.blocks.num_snapshots == 1
    run_all(scheduler, [make_sequence("b", [2] * 3, 1), make_sequence("c", [3] * 3, 1)])
    assert scheduler.blocks.num_snapshots == 0, "two running sequences need both slots"
    run_all(scheduler, [make_sequence("d", [4] * 8, 1)])
    assert scheduler.blocks.num_snapshots == 1
    run_all(scheduler, [make_sequence("e", list(range(15)), 1)])
    assert scheduler.blocks.match(make_sequence("f", [4] * 9, 1)).known == 0, "its blocks were overwritten"


def test_resume_when_the_snapshot_is_the_only_slot_left() -> None:
    scheduler = make_scheduler(8, num_slots=2, seqs=2)
    ledger = Ledger(scheduler.blocks)
    long_lived = make_sequence("long", [9, 9, 9], 6)
    scheduler.add(long_lived)
    run_step(scheduler, ledger)
    # One slot is taken; the other becomes a's, and so no slot is left for a's snapshot while it runs.
    scheduler.add(make_sequence("a", [1] * 4, 1))
    run_step(scheduler, ledger)
    scheduler.add(make_sequence("b", [1] * 4 + [2], 1))
    while scheduler.has_work:
        run_step(scheduler, ledger)


def test_held_sequences_keep_their_blocks_and_stop_admission() -> None:
    scheduler = make_scheduler(2, caching=False)
    held, late = make_sequence("held", [1] * 7, 2), make_sequence("late", [2] * 7, 2)
    scheduler.add(held)
    scheduler.complete(scheduler.schedule())
    scheduler.hold(held)
    scheduler.add(late)
    assert scheduler.schedule().chunks == []
    scheduler.finish(held)
    assert plan(scheduler.schedule()) == [("late", 0, 7)]
    scheduler.finish(late)


def test_limits_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="max_num_batched_tokens=4 is below max_num_seqs=8"):
        SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=4)
    with pytest.raises(ValueError, match="num_blocks=0"):
        BlockManager(0, 4, 0)


request_lists = st.lists(
    st.tuples(
        st.integers(0, 2),  # which of three prefixes
        st.integers(0, 12),  # how much of it
        st.integers(1, 9),  # own tokens
        st.integers(1, 9),  # output
        st.integers(0, 6),  # steps before the next arrival
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150)
@given(request_lists, st.integers(8, 20), st.integers(0, 3), st.booleans(), st.integers(4, 20))
def test_any_load_finishes_with_right_contents_and_no_leak(
    requests: list[tuple[int, int, int, int, int]],
    num_blocks: int,
    spare_slots: int,
    state: bool,
    budget: int,
) -> None:
    prefixes = [[(i * 7 + j * j) % 5 for j in range(12)] for i in range(3)]
    scheduler = make_scheduler(num_blocks, 4 + spare_slots if state else 0, tokens=budget)
    ledger, everyone = Ledger(scheduler.blocks), []
    arrivals = [(gap, make_sequence(str(i), prefixes[p][:cut] + [i % 5] * own, out))
                for i, (p, cut, own, out, gap) in enumerate(requests)]  # fmt: skip
    steps = 0
    for gap, sequence in arrivals:
        everyone.append(sequence)
        scheduler.add(sequence)
        for _ in range(gap):
            check_step(run_step(scheduler, ledger), scheduler)
    while scheduler.has_work:
        step = run_step(scheduler, ledger)
        check_step(step, scheduler)
        assert step.chunks, "work is waiting but nothing was scheduled"
        steps += 1
        assert steps < 2000, "no progress"
    assert all(s.num_output == s.sampling.max_tokens for s in everyone)
    expected = [list(s.request.prompt_token_ids) for s in everyone]
    for tokens, sequence in zip(expected, everyone, strict=True):
        while len(tokens) < len(sequence):
            tokens.append(sum(tokens) % 7)
        assert tokens == sequence.token_ids


def check_step(step: ScheduledStep, scheduler: Scheduler) -> None:
    assert sum(chunk.new for chunk in step.chunks) == step.num_tokens <= scheduler.config.max_num_batched_tokens
    assert (
        len({chunk.sequence.request_id for chunk in step.chunks}) == len(step.chunks) <= scheduler.config.max_num_seqs
    )
    if any(chunk.is_decode for chunk in step.chunks):
        kinds = [chunk.is_decode for chunk in step.chunks]
        first_prompt = kinds.index(False) if False in kinds else len(kinds)
        # After the first prompt chunk only resumed prompts with one token left may look like decodes.
        assert all(
            chunk.past == 0 or not chunk.is_decode or chunk.sequence.num_preemptions
            for chunk in step.chunks[first_prompt:]
        )
    order = [int(s.request_id) for s in [*scheduler.running, *scheduler.waiting]]
    assert order == sorted(order)


def test_scheduling_needs_no_torch() -> None:
    code = "import sys, runtime.scheduler, runtime.sequence; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
