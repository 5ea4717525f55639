"""The HTTP endpoint over a real engine, called through a real socket-free client."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from fastapi.testclient import TestClient

from runtime.config.spec import ModelConfig
from runtime.engine import Engine, EngineConfig
from runtime.sequence import SamplingParams
from runtime.server import create_app
from runtime.tokenizer import ByteTokenizer, DirectoryTokenizer, decode

URL = "/v1/completions"


@pytest.fixture
def engine(nano_config: ModelConfig) -> Engine:
    torch.set_num_threads(1)
    return Engine.build(nano_config, EngineConfig(num_blocks=48, block_size=16, max_num_seqs=4))


@pytest.fixture
def client(engine: Engine) -> Iterator[TestClient]:
    with TestClient(create_app(engine, ByteTokenizer(), "nano")) as client:
        yield client


def text_of(config: ModelConfig, prompt: str, count: int) -> str:
    engine = Engine.build(config, EngineConfig(num_blocks=48, block_size=16))
    (output,) = engine.generate([list(prompt.encode())], SamplingParams(count, ignore_eos=True))
    return decode(ByteTokenizer(), output.token_ids)


def events_of(client: TestClient, call: dict[str, Any]) -> list[Any]:
    with client.stream("POST", URL, json=call) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def greedy(prompt: Any, count: int, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": count, "temperature": 0, "ignore_eos": True, **more}


def test_models_and_health(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    (card,) = client.get("/v1/models").json()["data"]
    assert (card["id"], card["max_model_len"]) == ("nano", 512)


def test_whole_and_streamed_text_equal_the_engine(client: TestClient, nano_config: ModelConfig) -> None:
    expected = text_of(nano_config, "some prompt", 12)
    whole = client.post(URL, json=greedy("some prompt", 12, model="nano")).json()
    assert whole["choices"] == [{"index": 0, "text": expected, "logprobs": None, "finish_reason": "length"}]
    assert {k: whole["usage"][k] for k in ("prompt_tokens", "completion_tokens", "total_tokens")} == {
        "prompt_tokens": 11,
        "completion_tokens": 12,
        "total_tokens": 23,
    }
    events = events_of(client, greedy("some prompt", 12, stream=True, stream_options={"include_usage": True}))
    assert len(events) == 12 + 1, "one event a token, then usage"
    assert "".join(event["choices"][0]["text"] for event in events[:-1]) == expected
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None] * 11 + ["length"]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 12
    assert len({event["id"] for event in events}) == 1


def test_several_prompts_at_once(client: TestClient, nano_config: ModelConfig) -> None:
    expected = [text_of(nano_config, prompt, 6) for prompt in ("one", "another")]
    whole = client.post(URL, json=greedy(["one", "another"], 6)).json()
    assert [choice["text"] for choice in whole["choices"]] == expected
    tokens = [list(b"one"), list(b"another")]
    events = events_of(client, greedy(tokens, 6, stream=True))
    texts = ["", ""]
    for event in events:
        texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert texts == expected


def test_stop_string_cuts_the_text_and_ends_the_request(client: TestClient, nano_config: ModelConfig) -> None:
    free = text_of(nano_config, "some prompt", 40)
    stop = next(free[i] for i in range(2, 40) if free[i] not in free[:i])
    call = greedy("some prompt", 200, stop=[stop, "never in it, surely"])
    choice = client.post(URL, json=call).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (free[: free.index(stop)], "stop")


def test_fields_that_ask_for_nothing_are_taken(client: TestClient, nano_config: ModelConfig) -> None:
    """What load generators send whether they need it or not."""
    nothing = {"n": 1, "best_of": 1, "logprobs": None, "echo": False, "suffix": None, "use_beam_search": False}
    nothing |= {"frequency_penalty": 0, "presence_penalty": 0.0, "repetition_penalty": 1.0, "min_p": 0, "top_k": -1}
    nothing |= {"response_format": {"type": "text"}, "logit_bias": None, "min_tokens": 0, "user": "someone"}
    whole = client.post(URL, json=greedy("some prompt", 6, **nothing)).json()
    assert whole["choices"][0]["text"] == text_of(nano_config, "some prompt", 6)


def test_penalties_and_biases_change_what_is_said(client: TestClient) -> None:
    def ask(**more: Any) -> str:
        text: str = client.post(URL, json=greedy("xyxy", 24, **more)).json()["choices"][0]["text"]
        return text

    assert ask(logit_bias={"65": 100}) == "A" * 24
    plain, penalised = ask(logit_bias={"65": 20}), ask(logit_bias={"65": 20}, frequency_penalty=2)
    assert plain == "A" * 24
    assert 0 < penalised.count("A") < 24, "20 of bias last ten tokens of penalty"
    assert ask(logit_bias={"65": 0.5}, repetition_penalty=1e6) != ask(logit_bias={"65": 0.5})


def test_metrics_count_what_was_served(client: TestClient, engine: Engine) -> None:
    client.post(URL, json=greedy("some prompt", 12))
    client.post(URL, json=greedy(["one", "another"], 3))
    wait_idle(engine)
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    found = dict(line.rsplit(" ", 1) for line in response.text.splitlines() if not line.startswith("#"))
    label = 'engine="0",model_name="nano"'
    expected = {
        f"vllm:prompt_tokens_total{{{label}}}": 11 + 3 + 7,
        f"vllm:generation_tokens_total{{{label}}}": 18,
        f'vllm:request_success_total{{{label},finished_reason="length"}}': 3,
        f"vllm:num_requests_running{{{label}}}": 0,
        f"vllm:time_to_first_token_seconds_count{{{label}}}": 3,
        f"vllm:inter_token_latency_seconds_count{{{label}}}": 11 + 2 + 2,
        f'vllm:request_generation_tokens_bucket{{{label},le="5.0"}}': 2,
        f'vllm:cache_config_info{{block_size="16",num_gpu_blocks="48",{label}}}': 1,
    }
    assert {name: float(found[name]) for name in expected} == expected


CHAT = "/v1/chat/completions"
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}{% if think %}!{% endif %}"
)


@pytest.fixture
def talker(engine: Engine, tmp_path: Path) -> Iterator[TestClient]:
    """A server with a tokenizer of bytes that has a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=plain, chat_template=TEMPLATE).save_pretrained(tmp_path)
    with TestClient(create_app(engine, DirectoryTokenizer(tmp_path), "nano")) as client:
        yield client


def chat(text: Any, count: int | None = None, **more: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": text}]
    call = {"messages": messages, "temperature": 0, "ignore_eos": True, **more}
    return call if count is None else call | {"max_tokens": count}


def test_a_chat_continues_what_the_template_wrote(talker: TestClient) -> None:
    written = "<system>Be short.<user>Who?<assistant>"
    expected = talker.post(URL, json=greedy(written, 9)).json()
    said = talker.post(CHAT, json=chat("Who?", 9)).json()
    assert said["object"] == "chat.completion"
    text = expected["choices"][0]["text"]
    assert said["choices"] == [{"index": 0, "message": {"role": "assistant", "content": text},
                                "logprobs": None, "finish_reason": "length"}]  # fmt: skip
    assert said["usage"]["prompt_tokens"] == expected["usage"]["prompt_tokens"] == len(written)
    parts = [{"type": "text", "text": "Wh"}, {"type": "text", "text": "o?"}]
    assert talker.post(CHAT, json=chat(parts, max_completion_tokens=9)).json()["choices"] == said["choices"]
    thinking = chat("Who?", 9, chat_template_kwargs={"think": True})
    assert talker.post(CHAT, json=thinking).json()["usage"]["prompt_tokens"] == len(written) + 1
    longest = talker.post(CHAT, json=chat("Who?")).json()["usage"]["completion_tokens"]
    assert longest == 512 - len(written), "all there is room for"


def test_a_streamed_chat_gives_deltas(talker: TestClient) -> None:
    whole = talker.post(CHAT, json=chat("Who?", 9)).json()["choices"][0]["message"]["content"]
    call = chat("Who?", 9, stream=True, stream_options={"include_usage": True})
    with talker.stream("POST", CHAT, json=call) as response:
        lines = [line[6:] for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    *events, last = [json.loads(line) for line in lines[:-1]]
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    deltas = [event["choices"][0]["delta"] for event in events]
    assert [delta.get("role") for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    assert "".join(delta["content"] for delta in deltas) == whole
    assert last["usage"]["completion_tokens"] == 9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (chat("x", tools=[{"type": "function"}]), "tools=[{'type': 'function'}] is not supported"),
        (chat([{"type": "image_url", "image_url": {}}]), "a part of type 'image_url'; only text is read"),
        ({"messages": []}, "messages is empty"),
        ({"prompt": "x"}, "messages: Field required"),
    ],
)
def test_bad_chats_are_refused_in_one_sentence(talker: TestClient, call: dict[str, Any], message: str) -> None:
    response = talker.post(CHAT, json=call)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


def test_a_chat_needs_a_template(client: TestClient) -> None:
    response = client.post(CHAT, json=chat("x"))
    assert response.status_code == 400
    assert "bytes have no chat template; use /v1/completions" in response.json()["error"]["message"]


def test_seed_repeats_and_no_seed_does_not(client: TestClient) -> None:
    def ask(**more: Any) -> str:
        call = {"prompt": "x", "max_tokens": 24, "ignore_eos": True, **more}
        text: str = client.post(URL, json=call).json()["choices"][0]["text"]
        return text

    assert ask(seed=4) == ask(seed=4)
    assert len({ask() for _ in range(4)}) > 1


@pytest.mark.parametrize(
    ("call", "status", "message"),
    [
        ({"prompt": ""}, 400, "the prompt is empty"),
        ({"prompt": []}, 400, "the prompt is empty"),
        ({"prompt": [3, 300]}, 400, "token 300 at position 1"),
        ({"prompt": "x" * 600}, 400, "the maximum length is 512"),
        ({"prompt": "x", "max_tokens": 0}, 400, "max_tokens=0"),
        ({"prompt": "x", "max_tokens": 600}, 400, "max_tokens of at most 511"),
        ({"prompt": "x", "temperature": -1}, 400, "temperature=-1"),
        ({"prompt": "x", "n": 2}, 400, "n=2 is not supported"),
        ({"prompt": "x", "logprobs": 3}, 400, "logprobs=3 is not supported"),
        ({"prompt": "x", "echo": True}, 400, "echo=True is not supported"),
        ({"prompt": "x", "guided_regex": "a+"}, 400, "guided_regex='a+' is not supported"),
        ({"prompt": "x", "response_format": {"type": "json_object"}}, 400, "is not supported; leave it out"),
        ({"prompt": "x", "frequency_penalty": 3}, 400, "frequency_penalty=3.0 is out of range; use -2 to 2"),
        ({"prompt": "x", "logit_bias": {"300": 1}}, 400, "token 300 of logit_bias or stop_token_ids is out of range"),
        ({"prompt": "x", "min_p": 2}, 400, "min_p=2.0 is out of range"),
        ({"prompt": "x", "stop": ""}, 400, "stop holds an empty string"),
        ({"prompt": "x", "model": "other"}, 404, "model 'other' does not exist; use 'nano'"),
        ({"prompt": {"a": 1}}, 400, "prompt: give a string"),
        ({"prompt": "x", "max_tokens": "many"}, 400, "max_tokens: Input should be a valid integer"),
        ({}, 400, "prompt: Field required"),
    ],
)
def test_bad_calls_are_refused_in_one_sentence(
    client: TestClient, call: dict[str, Any], status: int, message: str
) -> None:
    response = client.post(URL, json=call)
    assert response.status_code == status
    assert message in response.json()["error"]["message"]
    assert client.post(URL, json=greedy("x", 2)).status_code == 200, "others are served"


def test_one_bad_prompt_of_two_is_refused_and_nothing_runs_on(client: TestClient, engine: Engine) -> None:
    assert client.post(URL, json=greedy(["good", ""], 400)).status_code == 400
    wait_idle(engine)


def wait_idle(engine: Engine) -> None:
    deadline = time.monotonic() + 20
    while engine.has_work:
        assert time.monotonic() < deadline, "a request that nobody wants is still running"
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_request(engine: Engine, stream: bool) -> None:
    config = uvicorn.Config(create_app(engine, ByteTokenizer(), "nano"), port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as connection:
            call = json.dumps(greedy("x", 500, stream=stream))
            head = f"POST {URL} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(call)}\r\n\r\n{call}".encode())
            while len(engine.step_records) < 3:
                time.sleep(0.01)
        wait_idle(engine)
        assert len(engine.step_records) < 400, "it ended before its 500 tokens"
    finally:
        server.should_exit = True
        thread.join()


def test_calls_in_parallel_share_steps(client: TestClient, engine: Engine, nano_config: ModelConfig) -> None:
    prompts = ["first", "second one", "third"]
    texts: dict[str, str] = {}

    def ask(prompt: str) -> None:
        texts[prompt] = client.post(URL, json=greedy(prompt, 30)).json()["choices"][0]["text"]

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {prompt: text_of(nano_config, prompt, 30) for prompt in prompts}
    assert max(len(record.decode_contexts) for record in engine.step_records) > 1


def test_a_broken_engine_answers_instead_of_hanging(
    client: TestClient, engine: Engine, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("out of device memory")

    monkeypatch.setattr(engine.executor.runner, "step", fail)
    response = client.post(URL, json=greedy("x", 4))
    assert response.status_code == 500
    assert "the engine broke: MemoryError: out of device memory" in response.json()["error"]["message"]
    assert client.post(URL, json=greedy("x", 4)).status_code == 503
    assert client.get("/health").status_code == 503
    assert "Traceback" in capfd.readouterr().err
