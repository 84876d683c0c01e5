"""The HTTP server: OpenAI's routes for embeddings, health and metrics."""

import asyncio
import contextlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from grace_exp.config.serving import ServeConfig
from grace_exp.data.batch import Role
from grace_exp.encoder.serving.answers import Answer, Answers, Kind
from grace_exp.encoder.serving.batcher import Batcher, QueueFullError
from grace_exp.encoder.serving.embedding_request import EmbeddingRequest, RequestError, parse_request, response
from grace_exp.encoder.serving.serving_metrics import ServingMetrics
from grace_exp.errors import GraceError

_MIB = 1024**2


class EmbeddingServer:
    """One encoder, its queue and its cache, as a Starlette application (`app`)."""

    def __init__(self, answers: Answers, config: ServeConfig, *, role: Role, api_key: str | None = None) -> None:
        """Prepare the routes; the application's lifespan starts and stops the batches.

        Args:
            answers: The encoder.
            config: Limits and names.
            role: Role of texts that are sent to the model's plain name.
            api_key: Bearer token that clients must send; None: no token is needed.
        """
        self._answers = answers
        self._config = config
        self._api_key = api_key
        self._roles = {config.name: role, f"{config.name}:query": Role.QUERY, f"{config.name}:document": Role.POSITIVE}
        self._started = int(time.time())
        self._model_thread = ThreadPoolExecutor(1, "model")
        self._cache_thread = ThreadPoolExecutor(1, "cache")
        self.metrics = ServingMetrics()
        self._batcher: Batcher | None = None
        routes = [
            Route("/v1/embeddings", self._embeddings, methods=["POST"]),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._model),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
        ]
        self.app = Starlette(routes=routes, lifespan=self._lifespan, exception_handlers={RequestError: _refuse})

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self._batcher = Batcher(
            self._answers.compute,
            self._model_thread,
            batch_texts=self._answers.settings.batch_size,
            gather_s=self._config.gather_ms / 1000,
            queue_texts=self._config.queue_texts,
            on_batch=self.metrics.batch_texts.observe,
        )
        task = asyncio.create_task(self._batcher.run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await asyncio.get_running_loop().run_in_executor(self._model_thread, self._answers.close)
            self._model_thread.shutdown()
            self._cache_thread.shutdown()

    async def _embeddings(self, request: Request) -> Response:
        start = time.monotonic()
        try:
            found = await self._answer(request, start)
        except RequestError as error:
            self.metrics.requests.labels(str(error.status)).inc()
            raise
        except QueueFullError as error:
            self.metrics.requests.labels("429").inc()
            return _error(429, str(error), headers={"Retry-After": str(error.retry_after)})
        except GraceError as error:
            self.metrics.requests.labels("400").inc()
            return _error(400, str(error))
        except Exception as error:  # an error of the model; the log has the details
            self.metrics.requests.labels("500").inc()
            return _error(500, f"the model failed on this request ({type(error).__name__})")
        self.metrics.requests.labels("200").inc()
        return found

    async def _answer(self, request: Request, start: float) -> Response:
        self._check_key(request)
        wanted = parse_request(await self._body(request), self._config.request_texts)
        kind = self._kind(wanted)
        in_cache_thread = partial(asyncio.get_running_loop().run_in_executor, self._cache_thread)
        prompt_tokens = await in_cache_thread(self._answers.prompt_tokens, wanted.input, kind.role)
        answer, source = await in_cache_thread(self._answers.known, wanted.input, kind), "cache"
        if answer is None:
            answer, source = await self._computed(wanted, kind, start), "model"
            self.metrics.tokens.labels("written").inc(sum(answer.rationale_tokens))
        self.metrics.tokens.labels("read").inc(prompt_tokens)
        self.metrics.texts.labels(source).inc(len(wanted.input))
        self.metrics.seconds.labels(source).observe(time.monotonic() - start)
        if wanted.dimensions is not None:
            answer = self._answers.shortened(answer, wanted.dimensions)
        body = response(wanted, answer, prompt_tokens)
        headers = {"X-Grace-Source": source}
        return Response(json.dumps(body, ensure_ascii=False), media_type="application/json", headers=headers)

    async def _computed(self, wanted: EmbeddingRequest, kind: Kind, start: float) -> Answer:
        assert self._batcher is not None  # the lifespan has made it
        remaining = self._config.timeout_s - (time.monotonic() - start)
        try:
            return await asyncio.wait_for(self._batcher.submit(wanted.input, kind), max(0.0, remaining))
        except TimeoutError:
            raise RequestError(
                f"no answer within {self._config.timeout_s:g} s (job.serve.timeout_s); send fewer texts at a time",
                status=504,
            ) from None

    def _kind(self, wanted: EmbeddingRequest) -> Kind:
        if wanted.model not in self._roles:
            known = ", ".join(self._roles)
            raise RequestError(f"there is no model {wanted.model!r}; there are {known}", status=404, param="model")
        hidden = self._answers.dimensions
        if wanted.dimensions is not None and wanted.dimensions > hidden:
            raise RequestError(f"dimensions={wanted.dimensions}: the model has {hidden}", param="dimensions")
        most = self._answers.encoder.max_tokens
        if wanted.max_tokens is not None and wanted.max_tokens > most:
            raise RequestError(f"max_tokens={wanted.max_tokens}: {most} is the model's budget", param="max_tokens")
        return Kind(self._roles[wanted.model], most if wanted.max_tokens is None else wanted.max_tokens)

    def _check_key(self, request: Request) -> None:
        given = request.headers.get("authorization", "")
        if self._api_key is not None and not hmac.compare_digest(given.encode(), f"Bearer {self._api_key}".encode()):
            raise RequestError("the API key is missing or wrong", status=401)

    async def _body(self, request: Request) -> Any:
        limit = int(self._config.body_mib * _MIB)
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > limit:
                raise RequestError(f"the body is larger than {self._config.body_mib:g} MiB", status=413)
        try:
            return json.loads(body)
        except ValueError as error:  # raised by JSON and by UTF-8 decoding
            raise RequestError(f"the body is not JSON ({error})") from None

    async def _models(self, request: Request) -> Response:
        self._check_key(request)
        return JSONResponse({"object": "list", "data": [self._described(name) for name in self._roles]})

    async def _model(self, request: Request) -> Response:
        self._check_key(request)
        name = request.path_params["name"]
        if name not in self._roles:
            raise RequestError(f"there is no model {name!r}", status=404, param="model")
        return JSONResponse(self._described(name))

    def _described(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._started, "owned_by": "grace-exp"}

    async def _health(self, request: Request) -> Response:
        waiting = self._batcher.waiting_texts if self._batcher is not None else 0
        return JSONResponse({"status": "ok", "model": self._config.name, "waiting_texts": waiting})

    async def _metrics(self, request: Request) -> Response:
        self.metrics.waiting.set(self._batcher.waiting_texts if self._batcher is not None else 0)
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)  # the handler is registered for this class
    return _error(error.status, str(error), error.param)


def _error(status: int, message: str, param: str | None = None, headers: dict[str, str] | None = None) -> Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"error": {"message": message, "type": kind, "param": param, "code": None}}
    return JSONResponse(body, status_code=status, headers=headers)
