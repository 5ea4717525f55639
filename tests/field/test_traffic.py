"""Recorded traffic of every kind becomes a scenario that `simulate` runs and `plan` reads as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli import cli
from app.commands.trace_options import joined_columns
from app.imports.traffic_scenario import common_beginning
from simulator.des.simulate import simulate
from simulator.scenario import load_scenario, parse_scenario

MODEL = ("--model", "qwen3-30b-a3b", "--gpu", "h100")
BASE = """model = "qwen3-30b-a3b"
[slo]
ttft_s = 5.0
tpot_s = 0.1
[search]
gpus = ["h100"]
forms = ["colocated"]
simulate_top = 1
[deployment.colocated]
gpu = "h100"
"""


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, list(words))
    assert "Traceback" not in done.output
    return done.exit_code, done.output


def imported(tmp_path: Path, *words: str) -> dict[str, Any]:
    """The answer of `import traffic`; the scenario lies in scenario.toml."""
    base, output = tmp_path / "base.toml", tmp_path / "scenario.toml"
    base.write_text(BASE)
    code, said = run("import", "traffic", *words, "--scenario", str(base), "--output", str(output), "--json", "-")
    assert code == 0, said
    answer: dict[str, Any] = json.loads(said)
    return answer


def simulated(tmp_path: Path) -> dict[str, Any]:
    result: dict[str, Any] = simulate(load_scenario(tmp_path / "scenario.toml")).summary().to_json()
    return result


def chats(tmp_path: Path) -> tuple[Path, int]:
    """Conversations in seconds with 16-token blocks, and the tokens that a cache finds of them: the full and the cut
    block of each first question."""
    rows = []
    for i in range(12):
        ids = list(range(1000 * i, 1000 * i + 100))
        first, second = 200 + 16 * i, 700
        for turn, (at, tokens) in enumerate([(9.731 * i, first), (9.731 * i + 30.5, second)], start=1):
            row = {"chat_id": 2 * i + turn, "parent_chat_id": -1 if turn == 1 else 2 * i + 1, "timestamp": round(at, 3),
                   "input_length": tokens, "output_length": 60, "type": "text", "turn": turn,
                   "hash_ids": ids[: -(-tokens // 16)]}  # fmt: skip
            rows.append(row)
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in sorted(rows, key=lambda row: row["timestamp"])))
    return path, sum(-(-(200 + 16 * i) // 16) * 16 for i in range(12))


def test_chats_in_seconds_are_replayed_at_their_rate_with_their_hits(tmp_path: Path) -> None:
    path, hits = chats(tmp_path)
    answer = imported(tmp_path, str(path))
    assert answer["mean_rate"] == pytest.approx(24 / (9.731 * 11 + 30.5))
    assert (answer["time_unit"], answer["block_tokens"], answer["hit_tokens"]) == ("s", 16, hits)
    assert (answer["sessions"], answer["turns_per_session"]) == (12, 2.0)
    result = simulated(tmp_path)
    assert result["requests"]["finished"] == 24
    assert result["cached_tokens"] == hits


def test_without_a_deployment_the_planner_sizes_one(tmp_path: Path) -> None:
    path, _ = chats(tmp_path)
    output = tmp_path / "scenario.toml"
    code, said = run("import", "traffic", str(path), *MODEL, "--output", str(output))
    assert code == 0, said
    result = simulated(tmp_path)
    assert result["gpus_total"] >= 1
    assert result["slo"]["meets_slo"]


def test_a_key_overrides_the_file_and_one_that_contradicts_it_is_refused(tmp_path: Path) -> None:
    path, _ = chats(tmp_path)
    scenario = {"model": "qwen3-30b-a3b", "workload": {"kind": "trace", "path": str(path), "block_tokens": 512},
                "deployment": {"colocated": {"gpu": "h100"}}}  # fmt: skip
    with pytest.raises(ValueError, match=r"block_tokens=512 contradicts .*line \d+: a prompt of .* or give 16"):
        simulate(parse_scenario(scenario))


def test_tenants_with_unlike_blocks_share_a_cluster(tmp_path: Path) -> None:
    path, hits = chats(tmp_path)
    prefix = {"kind": "open_loop", "rate": 0.2, "requests": 20, "prompt": 1100, "output": 5,
              "shared_prefix": {"tokens": 1024}}  # fmt: skip
    tenants = [{"name": "chats", "workload": {"kind": "trace", "path": str(path)}}, {"name": "api", "workload": prefix}]
    deployment = {"colocated": {"gpu": "h100"}, "prefix_cache": {}}
    asked = parse_scenario({"model": "qwen3-30b-a3b", "tenants": tenants, "deployment": deployment})
    assert simulate(asked).summary().to_json()["cached_tokens"] == hits + 19 * 1024


def test_failed_rows_are_counted_in_the_answer_of_every_command(tmp_path: Path) -> None:
    path = tmp_path / "burst.csv"
    rows = [f"{25 + 9 * i},A,{500 + i},{0 if i % 5 == 2 else 80},{580 + i},Conversation log" for i in range(20)]
    path.write_text("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n" + "\n".join(rows))
    answer = imported(tmp_path, str(path))
    assert (answer["requests"], answer["failed"]) == (16, 4)
    told = "4 rows without a prompt or an answer are left out as failed requests"
    assert any(told in said for said in simulated(tmp_path)["assumptions"])
    code, said = run("plan", str(tmp_path / "scenario.toml"), "--json", "-")
    assert code == 0
    assert told in json.loads(said)["traffic"]


def test_any_table_is_read_by_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("when,tokens in,tokens out\n" + "".join(f"{0.4 * i:.1f},{300 + i},20\n" for i in range(10)))
    names = ("--columns", "arrived=when", "prompt=tokens in", "output=tokens out")
    assert joined_columns(names) == ["--columns", "arrived=when\nprompt=tokens in\noutput=tokens out"]
    # CliRunner hands words over as a shell does.
    answer = imported(tmp_path, str(path), *names, "--time-unit", "s")
    assert answer["mean_rate"] == pytest.approx(10 / 3.6)
    scenario = load_scenario(tmp_path / "scenario.toml")
    assert scenario.workload is not None
    assert simulated(tmp_path)["requests"]["finished"] == 10
    code, said = run("import", "traffic", str(path), "--output", str(tmp_path / "x.toml"))
    assert code == 2
    assert "--columns arrived=NAME prompt=NAME output=NAME" in " ".join(said.split())


def test_sessions_with_delays_wait_for_their_answers(tmp_path: Path) -> None:
    rows = []
    for i in range(5):
        rows.append({"session_id": f"s{i}", "input_length": 300, "output_length": 40, "hash_ids": [10 * i + 1]})
        rows.append({"session_id": f"s{i}", "delay": 500, "input_length": 700, "output_length": 40,
                     "hash_ids": [10 * i + 1, 10 * i + 2]})  # fmt: skip
    path = tmp_path / "sessions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    answer = imported(tmp_path, str(path), "--rate", "1/s")
    assert (answer["requests"], answer["sessions"]) == (10, 5)
    found = simulate(load_scenario(tmp_path / "scenario.toml"))
    assert found.summary().to_json()["requests"]["finished"] == 10
    table = found.requests
    for first, second in zip(range(0, 10, 2), range(1, 10, 2), strict=True):
        answered = table["finish_s"][first]
        assert table["arrival_s"][second] - answered == pytest.approx(0.5)


COUNTERS = {
    "vllm": ("vllm:request_success_total", "vllm:prompt_tokens_total", "vllm:generation_tokens_total",
             "vllm:prefix_cache_hits_total", "vllm:request_prompt_tokens", "vllm:request_generation_tokens"),
    "sglang": ("sglang:num_requests_total", "sglang:prompt_tokens_total", "sglang:generation_tokens_total",
               "sglang:cached_tokens_total", "sglang:prompt_tokens_histogram", "sglang:generation_tokens_histogram"),
}  # fmt: skip
EDGES = (100.0, 1000.0, 5000.0, 20000.0)


def counters(engine: str, scale: int) -> dict[tuple[str, str], float]:
    """After `scale` times 100 requests of 1,500 prompt and 200 output tokens on each of two engines."""
    names = COUNTERS[engine]
    found: dict[tuple[str, str], float] = {}
    for rank in ("0", "1"):
        labels = f'engine="{rank}",model_name="m"' if engine == "vllm" else 'engine_type="unified",model_name="m"'
        if engine == "sglang" and rank == "1":
            continue
        count = 100 * scale * (1 if engine == "vllm" else 2)
        reason = f'{labels},finished_reason="stop"' if engine == "vllm" else labels
        found |= {(names[0], reason): count, (names[1], labels): 1500 * count, (names[2], labels): 200 * count,
                  (names[3], labels): 600 * count}  # fmt: skip
        for name, shares in ((names[4], (0.02, 0.5, 0.95, 1.0)), (names[5], (0.3, 1.0, 1.0, 1.0))):
            for edge, share in zip(EDGES, shares, strict=True):
                found[f"{name}_bucket", f'{labels},le="{edge}"'] = share * count
            found[f"{name}_bucket", f'{labels},le="+Inf"'] = count
    return found


def dump(tmp_path: Path, engine: str, scale: int) -> Path:
    path = tmp_path / f"{engine}{scale}.prom"
    lines = [f"{name}{{{labels}}} {value}" for (name, labels), value in counters(engine, scale).items()]
    path.write_text("# HELP x (text)\n# TYPE x counter\n" + "\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_two_dumps_of_metrics_tell_rate_lengths_and_hits(tmp_path: Path, engine: str) -> None:
    first, last = dump(tmp_path, engine, 3), dump(tmp_path, engine, 5)
    answer = imported(tmp_path, str(first), str(last), "--seconds", "100")
    assert answer["requests_per_s"] == pytest.approx(4.0)
    assert answer["mean_prompt_tokens"] == pytest.approx(1500)
    assert answer["mean_output_tokens"] == pytest.approx(200)
    assert answer["prefix_hit_rate"] == pytest.approx(0.4)
    result = simulated(tmp_path)
    assert result["requests"]["finished"] == 2000
    assert result["tokens_in"] / 2000 == pytest.approx(1500, rel=0.1)
    assert result["cached_tokens"] / result["tokens_in"] == pytest.approx(0.4, abs=0.08)


def test_a_query_result_has_times_of_its_own_and_a_restart_counts_on(tmp_path: Path) -> None:
    """Over 26 hours; at the 10th the server starts anew, so that its counters begin at 0 again."""
    series = []
    hours = range(27)
    for (name, labels), each in counters("vllm", 1).items():
        metric = {"__name__": name} | dict(pair.split("=") for pair in labels.replace('"', "").split(","))
        values = [[1e9 + 3600 * h, str(each * (h if h < 10 else h - 10))] for h in hours]
        series.append({"metric": metric, "values": values})
    path = tmp_path / "range.json"
    path.write_text(json.dumps({"status": "success", "data": {"resultType": "matrix", "result": series}}))
    answer = imported(tmp_path, str(path))
    assert answer["requests"] == pytest.approx(200 * 25)
    assert answer["seconds"] == 26 * 3600
    assert len(answer["rate_by_hour"]) == 26
    workload = load_scenario(tmp_path / "scenario.toml").workload
    assert workload is not None
    assert workload.model_dump()["diurnal"]["trough"] < 1


def test_metrics_that_say_too_little_ask_for_the_rest(tmp_path: Path) -> None:
    first, last = dump(tmp_path, "vllm", 3), dump(tmp_path, "vllm", 5)
    output = ("--output", str(tmp_path / "x.toml"))
    for words, told in [
        ((str(first),), "give a second scrape, or the seconds since the server's start (--seconds)"),
        ((str(first), str(last)), "give the seconds between the first and the last (--seconds)"),
        ((str(first), str(first), "--seconds", "9"), "does not grow between the samples"),
        ((str(first), str(last), "--seconds", "9", "--time-unit", "s"), "--time-unit is for traces"),
    ]:
        code, said = run("import", "traffic", *words, *output)
        assert code == 2
        assert told in " ".join(said.split())
    rate = tmp_path / "rate.json"
    rate.write_text('{"data": {"resultType": "vector", "result": [{"metric": {}, "value": [1, "2"]}]}}')
    code, said = run("import", "traffic", str(rate), *output)
    assert code == 2
    assert "has no __name__, as rate() and sum() leave it" in " ".join(said.split())


def test_the_common_beginning_gives_the_hits_of_alike_prompts() -> None:
    """Of prompts of 4,096 tokens 1,024 are a quarter."""
    assert common_beginning(4096.0, 0.0, 0.25) == 1024


def test_a_base_that_looks_at_what_the_traffic_lacks_is_made_to_run(tmp_path: Path) -> None:
    base, path, output = tmp_path / "own.toml", tmp_path / "v.csv", tmp_path / "scenario.toml"
    head = '[deployment]\nrouter = "prefix_aware"\nprefix_cache = {share = 0.5}\n[deployment.colocated]'
    base.write_text(BASE.replace("[deployment.colocated]", head))
    path.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0,500,20\n1.5,600,30\n")
    code, said = run("import", "traffic", str(path), "--scenario", str(base), "--output", str(output))
    assert code == 0, said
    assert simulated(tmp_path)["requests"]["finished"] == 2
