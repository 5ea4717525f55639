import pytest

from simulator.model.presets import load_model
from simulator.planner.space import context_parallel_cuts, cuts, group_sizes


@pytest.mark.parametrize("model", ["deepseek-v4-pro", "qwen3-235b-a22b", "llama-3.1-70b", "gpt-oss-120b"])
@pytest.mark.parametrize("domain", [1, 8, 72])
def test_every_cut_is_one_the_model_allows_and_appears_once(model: str, domain: int) -> None:
    spec = load_model(model)
    found = [*cuts(spec, domain), *context_parallel_cuts(spec, domain)]
    assert len(found) == len(set(found)) > 0
    for cut in found:
        cut.check(spec)  # raises if not
        assert cut.gpus in group_sizes(domain)
        assert cut.tp <= max(domain, 8)


def test_a_dense_model_has_no_expert_or_data_parallel_cut() -> None:
    assert all(cut.ep == cut.dp == 1 for cut in cuts(load_model("llama-3.1-70b"), 8))


def test_a_rack_scale_fabric_allows_larger_groups() -> None:
    assert max(group_sizes(72)) == 72
    assert max(group_sizes(8)) == 32


@pytest.mark.parametrize("model", ["deepseek-v4-pro", "llama-3.1-70b"])
def test_context_parallel_cuts_split_tokens_and_nothing_else_twice(model: str) -> None:
    found = context_parallel_cuts(load_model(model), 8)
    assert found
    assert all(cut.cp > 1 and cut.dp == 1 for cut in found)
    assert {cut.ep == cut.gpus for cut in found} == {model == "deepseek-v4-pro"}
