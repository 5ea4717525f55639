"""OpenAI-compatible completions and chats over HTTP, streaming by server-sent events; metrics for Prometheus."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse

from runtime.backend import Backend
from runtime.chat import ChatRequest, chat_body, chat_choice, chat_delta
from runtime.completions import DEFAULT_TOKENS, CompletionRequest, StopText, body, choice, error_body, usage
from runtime.driver import Driver
from runtime.metrics import CONTENT_TYPE, Metrics
from runtime.sequence import Request, RequestError, RequestOutput, RequestTiming, TokenEvent, UnavailableError
from runtime.tokenizer import Tokenizer

_DISCONNECT_POLL_S = 0.5  # between looks whether a caller is still there (assumed)
_PROMPT_FORMS = "give a string, a list of strings, a list of token ids, or a list of such lists"
_LAST_LINE = "data: [DONE]\n\n"


@dataclass(frozen=True)
class _Piece:
    """News of one choice: some text, or its end."""

    index: int
    text: str
    output: RequestOutput | None = None


class _Completion:
    """The requests behind one HTTP call."""

    def __init__(
        self, call: CompletionRequest | ChatRequest, prompts: list[list[int]], tokenizer: Tokenizer, driver: Driver
    ) -> None:
        call.refuse_unsupported()
        self.is_chat = isinstance(call, ChatRequest)
        self.identity = f"{'chatcmpl' if self.is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._stops = call.stop_strings()
        self._tokenizer = tokenizer
        self._driver = driver
        now_s = time.monotonic()
        self._requests = [
            Request(
                f"{self.identity}-{index}",
                tuple(prompt),
                call.sampling(index, self._default_tokens(prompt)),
                now_s,
            )
            for index, prompt in enumerate(prompts)
        ]
        self._accepted: list[AsyncIterator[TokenEvent]] = []

    def _default_tokens(self, prompt: list[int]) -> int:
        """Of an answer: OpenAI's 16, in a chat all that there is room for."""
        backend = self._driver.backend
        room = min(backend.max_model_len, backend.capacity_tokens + 1) - len(prompt)
        return max(1, room) if self.is_chat else DEFAULT_TOKENS

    def choice(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        return (chat_choice if self.is_chat else choice)(index, text, reason)

    def body(self, model: str, choices: list[dict[str, Any]], *, chunk: bool = False, **extra: Any) -> dict[str, Any]:
        if self.is_chat:
            return chat_body(self.identity, model, choices, chunk=chunk, **extra)
        return body(self.identity, model, choices, **extra)

    async def start(self) -> None:
        """Hand all requests in; RequestError if one of them cannot be served."""
        try:
            for request in self._requests:
                self._accepted.append(await self._driver.submit(request))
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        for request in self._requests:
            self._driver.abort(request.request_id)

    async def pieces(self) -> AsyncGenerator[_Piece, None]:
        """Pieces of all choices as they come; those of one choice in order, its end last."""
        queue: asyncio.Queue[_Piece | Exception] = asyncio.Queue()

        async def follow(index: int, events: AsyncIterator[TokenEvent]) -> None:
            try:
                async for piece in self._choice(index, events):
                    queue.put_nowait(piece)
            except Exception as error:  # a defect must end the call, not leave it waiting
                queue.put_nowait(error)

        tasks = [asyncio.create_task(follow(i, events)) for i, events in enumerate(self._accepted)]
        try:
            unfinished = len(tasks)
            while unfinished:
                piece = await queue.get()
                if isinstance(piece, Exception):
                    raise piece
                unfinished -= piece.output is not None
                yield piece
        finally:
            for task in tasks:
                task.cancel()
            self.abort()  # nothing, where all have ended

    async def _choice(self, index: int, events: AsyncIterator[TokenEvent]) -> AsyncIterator[_Piece]:
        stream, stop = self._tokenizer.stream(), StopText(self._stops)
        tokens: list[int] = []
        async for event in events:
            text = ""
            if event.token_id is not None:
                tokens.append(event.token_id)
                text = stop.push(stream.push(event.token_id))
            output = event.output
            if output is not None and not stop.found:
                text += stop.push(stream.flush())
            if stop.found:
                self._driver.abort(event.request_id)
                yield _Piece(index, text, self._stopped(index, tokens))
                return
            if output is not None:
                yield _Piece(index, text + stop.flush(), output)
                return
            yield _Piece(index, text)

    def _stopped(self, index: int, tokens: list[int]) -> RequestOutput:
        """A choice that ends at a stop string, of which the engine knows nothing."""
        request = self._requests[index]
        timing = RequestTiming(request.arrival_s)
        prompt_tokens = len(request.prompt_token_ids)
        return RequestOutput(request.request_id, tuple(tokens), "stop", None, timing, prompt_tokens)


def create_app(backend: Backend, tokenizer: Tokenizer, model_name: str) -> FastAPI:
    """The application owns the backend: it starts a thread for it, and closes it at shutdown."""
    metrics = Metrics(model_name, *pool_of(backend))
    driver = Driver(backend, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        driver.start()
        yield
        await asyncio.to_thread(driver.stop)

    app = FastAPI(title="moeplan runtime", lifespan=lifespan)
    created = int(time.time())

    @app.exception_handler(RequestValidationError)
    async def invalid(_: HttpRequest, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:2]) or "body"
        reason = _PROMPT_FORMS if field == "prompt" and first["type"] != "missing" else first["msg"]
        return JSONResponse(error_body(f"{field}: {reason}", "invalid_request_error"), 400)

    @app.exception_handler(RequestError)
    async def refused(_: HttpRequest, error: RequestError) -> JSONResponse:
        return JSONResponse(error_body(str(error), "invalid_request_error"), 400)

    @app.exception_handler(UnavailableError)
    async def unavailable(_: HttpRequest, error: UnavailableError) -> JSONResponse:
        return JSONResponse(error_body(str(error), "server_error"), 503)

    @app.get("/health")
    async def health() -> JSONResponse:
        reason = driver.failure or backend.problem
        if reason is not None:
            return JSONResponse({"status": "failed", "reason": reason}, 503)
        return JSONResponse({"status": "ok"})

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        limits = {"max_model_len": min(backend.max_model_len, backend.capacity_tokens + 1)}
        card = {"id": model_name, "object": "model", "created": created, "owned_by": "moeplan", **limits}
        return {"object": "list", "data": [card]}

    @app.get("/metrics")
    async def scrape() -> Response:
        return Response(metrics.text(backend.load()), media_type=CONTENT_TYPE)

    async def answer(call: CompletionRequest | ChatRequest, prompts: list[list[int]], http: HttpRequest) -> Response:
        if call.model not in (None, model_name):
            message = f"model {call.model!r} does not exist; use {model_name!r}"
            return JSONResponse(error_body(message, "invalid_request_error"), 404)
        completion = _Completion(call, prompts, tokenizer, driver)
        await completion.start()
        if call.stream:
            wants_usage = call.stream_options is not None and call.stream_options.include_usage
            lines = _stream(completion, model_name, wants_usage)
            return StreamingResponse(lines, media_type="text/event-stream")
        return await _whole(completion, model_name, http.is_disconnected)

    @app.post("/v1/completions", response_model=None)
    async def completions(call: CompletionRequest, http: HttpRequest) -> Response:
        given = call.prompts()
        prompts = [tokenizer.encode(prompt) if isinstance(prompt, str) else prompt for prompt in given]
        return await answer(call, prompts, http)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(call: ChatRequest, http: HttpRequest) -> Response:
        prompt = tokenizer.encode_chat(call.conversation(), call.chat_template_kwargs or {})
        return await answer(call, [prompt], http)

    return app


async def _stream(completion: _Completion, model: str, wants_usage: bool) -> AsyncIterator[str]:
    outputs = []
    begun: set[int] = set()
    async with aclosing(completion.pieces()) as pieces:
        async for piece in pieces:
            reason = None
            if piece.output is not None:
                outputs.append(piece.output)
                reason = piece.output.finish_reason
                if piece.output.error is not None:
                    yield _line(error_body(piece.output.error, "server_error"))
            if completion.is_chat:
                part = chat_delta(piece.index, piece.text, reason, first=piece.index not in begun)
                begun.add(piece.index)
            else:
                part = choice(piece.index, piece.text, reason)
            yield _line(completion.body(model, [part], chunk=True))
    if wants_usage:
        yield _line(completion.body(model, [], chunk=True, usage=usage(outputs)))
    yield _LAST_LINE


def _line(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def pool_of(backend: Backend) -> tuple[int | None, int | None]:
    """Block size and blocks of the KV pool, where the backend tells them."""
    limits = getattr(backend, "config", None)
    return getattr(limits, "block_size", None), getattr(limits, "num_blocks", None)


async def _whole(completion: _Completion, model: str, is_disconnected: Callable[[], Any]) -> Response:
    """All text at once; gives up when the client has gone."""
    task = asyncio.create_task(_collect(completion))
    while not task.done():
        await asyncio.wait({task}, timeout=_DISCONNECT_POLL_S)
        if not task.done() and await is_disconnected():
            task.cancel()
            return Response(status_code=499)  # nobody reads it; 499 is what proxies log for it
    texts, outputs = task.result()
    broken = next((output.error for output in outputs if output.error is not None), None)
    if broken is not None:
        return JSONResponse(error_body(broken, "server_error"), 500)
    choices = [
        completion.choice(i, text, output.finish_reason)
        for i, (text, output) in enumerate(zip(texts, outputs, strict=True))
    ]
    return JSONResponse(completion.body(model, choices, usage=usage(outputs)))


async def _collect(completion: _Completion) -> tuple[list[str], list[RequestOutput]]:
    texts: dict[int, str] = {}
    outputs: dict[int, RequestOutput] = {}
    async with aclosing(completion.pieces()) as pieces:
        async for piece in pieces:
            texts[piece.index] = texts.get(piece.index, "") + piece.text
            if piece.output is not None:
                outputs[piece.index] = piece.output
    return [texts[i] for i in sorted(texts)], [outputs[i] for i in sorted(outputs)]
