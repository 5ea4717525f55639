"""The HTTP endpoint over a real engine, called through a real socket-free client."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import uvicorn
from fastapi.testclient import TestClient

from runtime.config.spec import ModelConfig
from runtime.engine import Engine, EngineConfig
from runtime.sequence import SamplingParams
from runtime.server import create_app
from runtime.tokenizer import ByteTokenizer, decode

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
