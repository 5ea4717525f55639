"""Launch lines: accelerators and the limits of one attention rank, by hand from the engines' rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibration.launch.commands import read_launch, read_launches
from calibration.launch.launch import LaunchError

SGLANG = "python3 -m sglang.launch_server --model-path a/b "


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("vllm serve a/b --tensor-parallel-size 8 --max-num-seqs 256", {"gpus": 8, "sequences": 256, "ep": 1}),
        # Tensor and data parallelism multiply; experts are cut over both; limits are of each engine.
        ("vllm serve a/b -tp=2 -dp 4 --enable_expert_parallel --max_num_batched_tokens=8k",
         {"gpus": 8, "tp": 2, "attention_dp": 4, "ep": 8, "tokens_per_step": 8000}),
        ("vllm serve a/b -tp 8 -dcp 8 -sc '{\"method\": \"mtp\", \"num_speculative_tokens\": 2}'",
         {"gpus": 8, "context_ranks": 8, "drafts": 2}),
        ("vllm serve a/b --speculative-config.num_speculative_tokens 3 -pp 2", {"gpus": 2, "pp": 2, "drafts": 3}),
        ("vllm serve a/b --data-parallel-size 16 --data-parallel-size-local 8", {"gpus": 16, "gpus_here": 8}),
        ("vllm serve a/b -tp 2 --kv_transfer_config '{\"kv_role\": \"kv_consumer\"}'", {"role": "decode"}),
        ("vllm serve a/b -tp 2 --kv-transfer-config '{\"kv_role\": \"kv_both\"}'", {"role": None}),
        ("docker run --gpus all vllm/vllm-openai:v0.33 --model a/b -tp 4", {"gpus": 4, "model": "a/b"}),
        ("python -m dynamo.vllm --model a/b --is-prefill-worker -tp 2", {"role": "prefill", "gpus": 2}),
        # SGLang: attention ranks lie inside TP, and limits count all of them.
        (SGLANG + "--tp-size 8 --dp-size 8 --enable-dp-attention --chunked-prefill-size 32768 "
         "--max-running-requests 1024",
         {"gpus": 8, "attention_dp": 8, "prefill_chunk": 4096, "sequences": 128}),
        (SGLANG + "--tp 8 --attn-dp-size 4 --chunked-prefill-size 32768", {"gpus": 8, "prefill_chunk": 8192}),
        (SGLANG + "--tp 4 --dp 2 --chunked-prefill-size 8192",
         {"gpus": 8, "replicas": 2, "attention_dp": 1, "prefill_chunk": 8192}),
        (SGLANG + "--tp 16 --nnodes 2 --chunked-prefill-size -1", {"gpus": 16, "gpus_here": 8, "prefill_chunk": None}),
        (SGLANG + "--speculative-algorithm EAGLE --speculative-num-steps 3 --speculative-num-draft-tokens 4",
         {"drafts": 3}),
        ("sglang serve --model-path a/b --disaggregation-mode prefill --tp 2", {"role": "prefill", "gpus": 2}),
        ("trtllm-serve a/b --tp_size 8 --ep_size 8 --max_batch_size 64 --max_num_tokens 4096",
         {"gpus": 8, "ep": 8, "sequences": 64, "tokens_per_step": 4096, "attention_dp": 1}),
        ("python3 -m sglang_router.launch_router --pd-disaggregation --prefill http://a 8998 --decode http://b "
         "--decode http://c", {"prefill_servers": 1, "decode_servers": 2, "gpus": None}),
    ],
)  # fmt: skip
def test_a_line_says_what_it_starts(line: str, wanted: dict[str, object]) -> None:
    found = read_launch(line)
    assert {name: getattr(found, name) for name in wanted} == wanted


def test_files_that_a_line_names_are_read(tmp_path: Path) -> None:
    """TensorRT-LLM's file overrides its flags, vLLM's flags override its file."""
    (tmp_path / "decode.yaml").write_text(
        "tensor_parallel_size: 8\nenable_attention_dp: true\nmax_batch_size: 64\nmoe_expert_parallel_size: 8\n"
        "speculative_config: {decoding_type: MTP, num_nextn_predict_layers: 3}\n"
    )
    line = "trtllm-serve a/b --tensor_parallel_size 4 --max_batch_size 32 --extra_llm_api_options decode.yaml"
    found = read_launch(line, tmp_path)
    assert (found.gpus, found.attention_dp, found.sequences, found.drafts) == (8, 8, 64, 3)
    assert found.label == "TP8 EP8 DPattn"
    (tmp_path / "serve.yaml").write_text("model: a/b\ntensor-parallel-size: 2\npipeline-parallel-size: 2\n")
    assert read_launch("vllm serve --config serve.yaml -tp 4", tmp_path).gpus == 8
    (tmp_path / "pair.yaml").write_text("context_servers: {num_instances: 2}\ngeneration_servers: {num_instances: 1}\n")
    pair = read_launch("trtllm-serve disaggregated -c pair.yaml", tmp_path)
    assert (pair.prefill_servers, pair.decode_servers) == (2, 1)


def test_a_script_may_hold_several_and_other_commands() -> None:
    script = "# comment\nexport A=1\nvllm serve a/b \\\n  -tp 2 && sleep 1\nnvidia-smi\nvllm serve c/d -tp 4\n"
    assert [(found.model, found.gpus) for found in read_launches(script)] == [("a/b", 2), ("c/d", 4)]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("ls -la", "starts no server that is known"),
        ("vllm serve 'a", "cannot be split into words"),
        ("vllm serve a -tp $TP", r"--tensor-parallel-size=\$TP is filled in by a shell"),
        ("vllm serve a -tp -3", "tp=-3 is not between 1 and"),
        (SGLANG + "--tp 8 --dp 3 --enable-dp-attention", "3 attention ranks do not divide --tp-size=8"),
        ("vllm serve a -tp two", "--tensor-parallel-size=two is not a whole number"),
        ("vllm serve a -sc {bad", "--speculative-config is not JSON"),
        ("vllm serve --config none.yaml", "none.yaml, which does not exist"),
    ],
)
def test_a_line_that_cannot_be_understood_is_refused(line: str, told: str) -> None:
    with pytest.raises(LaunchError, match=told):
        read_launch(line)


def test_a_file_of_another_kind_is_refused_and_nothing_in_it_is_run(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("!!python/object/apply:os.system ['touch pwned']\n")
    with pytest.raises(LaunchError, match="is not YAML that can be read"):
        read_launch("vllm serve --config bad.yaml", tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_a_startup_log_of_vllm_says_what_each_engine_holds() -> None:
    log = (
        "(APIServer pid=1) INFO [startup.py:96] non-default args: {'model': 'a/b', 'max_model_len': 65536, "
        "'data_parallel_size': 2, 'tensor_parallel_size': 4, 'enable_expert_parallel': True, 'max_num_seqs': 256}\n"
        "INFO [scheduler.py:310] Chunked prefill is enabled with max_num_batched_tokens=8192.\n"
        "INFO [core.py:140] Initializing a V1 LLM engine (v0.33.0) with config: model='a/b', speculative_config=None, "
        "tensor_parallel_size=4, pipeline_parallel_size=1, data_parallel_size=2, kv_cache_dtype=auto\n"
        "INFO [kv_cache_utils.py:1147] GPU KV cache size: 540,672 tokens, Maximum concurrency for 65,536 tokens\n"
    )
    found = read_launch(log)
    assert (found.engine, found.model, found.gpus, found.tp, found.attention_dp, found.ep) == (
        "vLLM",
        "a/b",
        8,
        4,
        2,
        8,
    )
    assert (found.sequences, found.tokens_per_step, found.kv_tokens, found.drafts) == (256, 8192, 540_672, 0)


def test_a_startup_log_of_sglang_has_the_limits_of_a_rank() -> None:
    log = (
        "[2026-11-30 10:00:01] server_args=ServerArgs(model_path='a/b', tp_size=8, dp_size=1, attn_dp_size=8, "
        "ep_size=8, pp_size=1, chunked_prefill_size=4096, max_running_requests=1024, speculative_algorithm=None)\n"
        "[2026-11-30 10:03:15 DP0 TP0 EP0] max_total_num_tokens=312448, chunked_prefill_size=4096, "
        "max_prefill_tokens=16384, max_running_requests=128, context_len=163840, available_gpu_mem=16.02 GB\n"
    )
    found = read_launch(log)
    assert (found.gpus, found.attention_dp, found.ep, found.label) == (8, 8, 8, "TP8 EP8 DPattn")
    assert (found.prefill_chunk, found.sequences, found.kv_tokens) == (4096, 128, 312_448)
    with pytest.raises(LaunchError, match="does not say tp_size"):
        read_launch(log.partition("\n")[2])
