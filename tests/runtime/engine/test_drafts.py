"""Drafts of the MTP layer: the same tokens in fewer steps, and an acceptance that is counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from runtime.config.reading import read_config
from runtime.engine import Engine, EngineConfig
from runtime.sequence import SamplingParams, SettingError

SAMPLING = [SamplingParams(14 + i, 0.6 * (i % 2), seed=i, ignore_eos=True) for i in range(4)]


def build(raw: dict[str, Any], strength: float, draft_tokens: int, **changes: Any) -> Engine:
    """A model whose layers add `strength` times what random weights would, and whose MTP layer passes the next token's
    embedding on: at 0 both continue a token in the same way, so that every draft holds."""
    settings = {"num_blocks": 24, "block_size": 16, "max_num_seqs": 4, "max_num_batched_tokens": 40} | changes
    config = read_config({**raw, "num_nextn_predict_layers": 1})
    engine = Engine.build(config, EngineConfig(**settings, draft_tokens=draft_tokens), seed=1)
    model = engine.executor.runner.model  # type: ignore[attr-defined]
    with torch.no_grad():
        for name, values in model.named_parameters():
            if name.rsplit(".", 1)[0].endswith((".wo", ".wo_b", ".down")) or name.endswith(".w2"):
                values.mul_(40 * strength)
            elif name.split(".")[-2:-1] == ["h_proj"]:
                values.zero_()
            elif name.split(".")[-2:-1] in (["e_proj"], ["eh_proj"]):
                values.copy_(torch.eye(*values.shape))
            elif name == "embed":
                values.mul_(50)
    return engine


def served(engine: Engine, prompts: list[list[int]]) -> list[tuple[int, ...]]:
    outputs = engine.generate(prompts, SAMPLING)
    engine.close()
    return [output.token_ids for output in outputs]


@pytest.fixture
def prompts() -> list[list[int]]:
    draw = torch.Generator().manual_seed(3)
    return [torch.randint(0, 290, (length,), generator=draw).tolist() for length in (3, 21, 47, 70)]


@pytest.mark.parametrize("family", ["v4", "v3"])
def test_drafts_that_hold_halve_the_steps(family: str, nano: Callable, prompts: list[list[int]]) -> None:
    plain, drafting = build(nano(family), 0.0, 0), build(nano(family), 0.0, 1)
    assert served(plain, prompts) == served(drafting, prompts)
    assert drafting.num_accepted == drafting.num_drafts > 0
    steps = [len(engine.step_records) for engine in (plain, drafting)]
    assert steps[1] < 0.7 * steps[0]
    said = sum(len(record.decode_contexts) + record.num_accepted for record in drafting.step_records)
    assert said == sum(len(record.decode_contexts) for record in plain.step_records), "each draft saves a decode"


@pytest.mark.parametrize("family", ["v4", "v3"])
@pytest.mark.parametrize("strength", [0.2, 1.0])
def test_drafts_that_fail_change_nothing(
    family: str, strength: float, nano: Callable, prompts: list[list[int]]
) -> None:
    """Wrong keys of a rejected token are overwritten, whatever blocks, windows and compressors hold; few blocks make
    sequences start again."""
    expected = served(build(nano(family), strength, 0), prompts)
    for blocks in (24, 9):
        drafting = build(nano(family), strength, 1, num_blocks=blocks)
        assert served(drafting, prompts) == expected
        assert drafting.num_drafts > 0
        assert strength < 1 or drafting.num_accepted < drafting.num_drafts


def test_requests_with_penalties_are_not_guessed_at(nano: Callable) -> None:
    engine = build(nano("v3"), 0.0, 1)
    engine.generate([[1, 2, 3]], SamplingParams(8, frequency_penalty=1.0, ignore_eos=True))
    assert engine.num_drafts == 0
    engine.close()


def test_a_model_without_mtp_cannot_draft(nano: Callable) -> None:
    with pytest.raises(SettingError, match="draft_tokens=1 is not possible: this model has 0 MTP layers"):
        Engine.build(read_config(nano("v3")), EngineConfig(block_size=16, draft_tokens=1))
