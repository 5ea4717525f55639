from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from simulator.model.ops import Reader, ShortRows, counted, entries_read, prefill_counts, readers
from simulator.model.presets import load_model


@given(
    ratio=st.sampled_from([1, 3, 4, 128]),
    cap=st.one_of(st.none(), st.integers(1, 60)),
    new=st.integers(1, 300),
    past=st.integers(0, 700),
)
def test_closed_form_equals_the_sum_over_positions(ratio: int, cap: int | None, new: int, past: int) -> None:
    limit = float("inf") if cap is None else cap
    by_hand = sum(min(p // ratio, limit) for p in range(past + 1, past + new + 1))
    assert entries_read(Reader(ratio, cap), new, past) == by_hand


def test_a_prompt_in_chunks_reads_what_it_reads_in_one() -> None:
    for reader in (Reader(1, None), Reader(1, 128), Reader(4, 512), Reader(128, None)):
        whole = entries_read(reader, 100_000, 0)
        parts = [entries_read(reader, min(8192, 100_000 - past), past) for past in range(0, 100_000, 8192)]
        assert sum(parts) == whole


def test_readers_of_v4_are_window_selection_keys_and_heavy_entries() -> None:
    model = load_model("deepseek-v4-pro")
    found = readers(layer.attention for layer in model.layers)
    assert set(found) == {Reader(1, 128), Reader(4, 1024), Reader(4, None), Reader(128, None)}


def test_drafted_rows_read_the_union_of_their_selections() -> None:
    model = load_model("deepseek-v4-pro")
    found = readers((layer.attention for layer in model.layers), queries=2)
    assert Reader(4, 2048) in found


@given(topk=st.integers(0, 20), more=st.integers(1, 20), new=st.integers(1, 300), past=st.integers(0, 300))
def test_choices_among_few_are_counted_where_rows_choose_and_are_short(
    topk: int, more: int, new: int, past: int
) -> None:
    entries = [p // 4 for p in range(past + 1, past + new + 1)]
    by_hand = sum(n for n in entries if topk < n <= topk + more)
    assert counted(ShortRows(4, topk, topk + more), new, past) == by_hand


def test_only_models_that_choose_among_few_count_such_rows() -> None:
    def short(name: str) -> list[object]:
        layers = load_model(name).layers
        return [what for what in prefill_counts(x.attention for x in layers) if isinstance(what, ShortRows)]

    assert short("deepseek-v4-pro") == [ShortRows(4, 1024, 2048)]
    assert short("deepseek-v3.2") == []  # it selects 2,048
    assert short("deepseek-v3") == []
