from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from app.commands import runtime_options
from app.commands.runtime import runtime_app

SMALL = ["--block-size", "16", "--num-blocks", "48", "--max-num-seqs", "4", "--max-num-batched-tokens", "64"]


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(runtime_app, [str(argument) for argument in arguments])


def test_generate_is_reproducible(nano_v4_file: Path, tmp_path: Path) -> None:
    json_file = tmp_path / "out.json"
    call = ["generate", "--model", nano_v4_file, *SMALL, "--prompt", "hello", "--prompt-ids", "1,2,3"]
    first = run(*call, "--max-tokens", "5", "--ignore-eos", "--json", json_file)
    assert first.exit_code == 0, first.output
    rows = json.loads(json_file.read_text())
    assert [row["prompt_token_ids"] for row in rows] == [list(b"hello"), [1, 2, 3]]
    assert all(len(row["token_ids"]) == 5 and row["finish_reason"] == "length" for row in rows)
    assert first.stdout == "".join(row["text"] + "\n" for row in rows)
    assert run(*call, "--max-tokens", "5", "--ignore-eos").stdout == first.stdout


def test_generate_from_a_checkpoint_equals_transformers(nano_qwen3: dict[str, Any], tmp_path: Path) -> None:
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    theirs = Qwen3MoeForCausalLM(Qwen3MoeConfig(**nano_qwen3)).eval()
    theirs.save_pretrained(tmp_path)
    prompt = [int(token) for token in torch.randint(0, 290, (37,))]
    expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=None)
    call = ["generate", "--model", tmp_path, *SMALL, "--ignore-eos", "--max-tokens", "24", "--json", "-"]
    result = run(*call, "--prompt-ids", ",".join(map(str, prompt)))
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[0]["token_ids"] == expected[0, 37:].tolist()


def test_generate_reports_a_bad_prompt_and_serves_the_good_one(nano_v4_file: Path) -> None:
    result = run("generate", "--model", nano_v4_file, *SMALL, "--prompt", "ok", "--prompt-ids", "1,999")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == (
        "moeplan: prompt 2: prompt token 999 at position 1 is out of range; the vocabulary is 0 to 299"
    )
    assert result.stdout.strip()


def test_the_tokenizer_beside_a_model_is_used_and_missing_weights_are_said(nano_v4_file: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    call = ["generate", "--model", nano_v4_file, *SMALL, "--prompt", "seven", "--max-tokens", "2", "--json", "-"]
    bare = run(*call)
    assert "no safetensors beside" in bare.stderr
    assert "weights are random (seed 0)" in bare.stderr
    assert "bytes of text are token ids" in bare.stderr
    words = Tokenizer(models.WordLevel({"unknown": 0, "seven": 7}, unk_token="unknown"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="unknown").save_pretrained(nano_v4_file.parent)
    told = run(*call)
    assert json.loads(told.stdout)[0]["prompt_token_ids"] == [7]
    assert "bytes of text" not in told.stderr
    assert not run("generate", "--model", "tiny-qwen3-moe", "--prompt", "x", "--max-tokens", "1").stderr


def test_bench_replays_a_trace(nano_v4_file: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    rows = "".join(f"2023-11-16 18:17:{i:02d}.0000000,{200 + 10 * i},{40}\n" for i in range(6))
    trace.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}")
    out = tmp_path / "bench.json"
    call = ["bench", "--model", nano_v4_file, *SMALL, "--trace", trace, "--speed", "20", "--length-scale", "0.1"]
    result = run(*call, "--max-requests", "5", "--json", out)
    assert result.exit_code == 0, result.output
    assert "5 of 5 requests finished" in result.stdout
    report = json.loads(out.read_text())
    assert report["summary"]["input_tokens"] == 20 + 21 + 22 + 23 + 24
    assert report["summary"]["output_tokens"] == 5 * 4
    assert [row["arrival_s"] for row in report["requests"]] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert {"commit", "processor", "torch"} <= report["machine"].keys()
    assert report["engine"]["max_num_seqs"] == 4
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        assert report["summary"][name]["p50"] > 0


def test_ranks_generate_what_one_process_does(tmp_path: Path) -> None:
    said = []
    for flags in ((), ("--tp", "2", "--ep", "2")):
        target = tmp_path / f"{len(flags)}.json"
        arguments = ["--prompt", "Two ranks", "--prompt-ids", "5,6,7", "--max-tokens", "6", "--json", str(target)]
        result = run("generate", "--model", "tiny-v3", *arguments, *flags)
        assert result.exit_code == 0, result.output
        said.append([row["token_ids"] for row in json.loads(target.read_text())])
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("text", "count", "devices"),
    [
        ("cpu", 3, ("cpu", "cpu", "cpu")),
        ("auto", 2, ("cuda:0", "cuda:1")),
        ("cuda", 1, ("cuda:0",)),
        ("cuda:2", 1, ("cuda:2",)),
        ("cuda:4-7", 4, ("cuda:4", "cuda:5", "cuda:6", "cuda:7")),
    ],
)
def test_every_rank_gets_a_device(
    text: str, count: int, devices: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    assert runtime_options._devices(text, count) == devices


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "--trace", "nowhere.csv"], "nowhere.csv: No such file"),
        (["bench", "--speed", "0"], "0 is not a finite number above 0"),
        (["bench", "--disaggregated", "2"], "--disaggregated '2' is not P,D"),
        (["bench", "--disaggregated", "0,1"], "--disaggregated '0,1' is not P,D"),
        (["generate"], "there is nothing to continue"),
        (["generate", "--prompt-ids", "a,b"], "--prompt-ids 'a,b' is not a list of numbers"),
        (["generate", "--prompt", "x", "--model", "gpt-9"], "model 'gpt-9' is neither a preset (tiny-"),
        (["generate", "--prompt", "x", "--device", "tpu9"], "--device 'tpu9' is not known"),
        (["generate", "--prompt", "x", "--device", "cuda:0-3"], "--device cuda:0-3 names 4 GPUs, but 1 ranks need one"),
        (["generate", "--prompt", "x", "--device", "cuda:0"], "--device cuda:0 is not there: this machine has 0 GPUs"),
        (["generate", "--prompt", "x", "--tp", "3"], "--tp 3 does not divide num_attention_heads"),
        (["generate", "--prompt", "x", "--dp", "2", "--block-size", "100"], "block_size=100 must be a multiple of 128"),
        (["generate", "--prompt", "x", "--kv-cache-dtype", "int3"], "kv_cache_dtype='int3' is not known; use auto"),
        (["generate", "--prompt", "x", "--dtype", "int3"], "--dtype 'int3' is not known"),
        (["generate", "--prompt", "x", "--block-size", "100"], "block_size=100 must be a multiple of 128"),
        (["generate", "--prompt", "x", "--weights", "nowhere"], "--weights nowhere is not a directory"),
        (["generate", "--prompt", "x", "--tokenizer", "nowhere"], "tokenizer nowhere is not a directory"),
        (["generate", "--prompt", "x", "--temperature", "-1"], "temperature=-1.0"),
        (["generate", "--prompt", "x", "--json", "no/such/dir.json"], "there is no directory"),
        (["serve", "--port", "0"], "--port"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.output


def test_without_torch_the_extra_is_named_and_help_still_works() -> None:
    code = "import sys; sys.modules['torch'] = None; from app.commands.runtime import runtime_app; runtime_app()"
    helped = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False)
    assert helped.returncode == 0
    assert "generate" in helped.stdout
    for command in (["bench"], ["generate", "--prompt", "x"], ["serve"]):
        refused = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
        assert refused.returncode == 2
        assert refused.stderr == (
            "moeplan: this command needs the package `torch`; install the extra: pip install 'moeplan[runtime]'\n"
        )


def test_serve_disaggregated_over_a_socket(nano_v4_file: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = "from app.commands.runtime import runtime_app; runtime_app()"
    call = ["serve", "--model", nano_v4_file, *SMALL, "--disaggregated", "1,1", "--port", port]
    server = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, call)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    base = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            assert server.poll() is None, server.stderr and server.stderr.read()
            assert time.monotonic() < deadline
            try:
                httpx.get(f"{base}/health").raise_for_status()
                break
            except httpx.TransportError:
                time.sleep(0.1)
        asked = {"model": "nano-v4.json", "prompt": "hello", "max_tokens": 6, "stream": True, "ignore_eos": True}
        with httpx.stream("POST", f"{base}/v1/completions", json=asked, timeout=30) as response:
            lines = [line for line in response.iter_lines() if line]
        assert len(lines) == 6 + 1
    finally:
        server.terminate()
        _, errors = server.communicate(timeout=60)
    assert server.returncode in (0, -15)
    assert "Application shutdown complete" in errors
    assert "Traceback" not in errors
