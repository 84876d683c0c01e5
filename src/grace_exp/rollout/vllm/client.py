"""HTTP requests to a vLLM server, each with a time limit."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import aiohttp

from grace_exp.errors import GraceError

_HEALTH_SECONDS = 5.0
_WATCH_SECONDS = 5.0
_SIGNS = 3  # of death, one after the other


class ServerGone(GraceError):
    """The server does not answer."""


class RefusedByServer(GraceError):
    """The server answered with an error."""

    def __init__(self, message: str, status: int) -> None:
        """Store the HTTP status."""
        super().__init__(message)
        self.status = status


class VllmClient:
    """Calls a server's endpoints; a call returns the server's answer or raises.

    If `VLLM_API_KEY` is set, it is sent as the password; the server reads the same variable.
    """

    def __init__(self, url: str) -> None:
        """Set the server's address, e.g. http://127.0.0.1:8000."""
        self.url = url.rstrip("/")
        key = os.environ.get("VLLM_API_KEY")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def get(self, path: str, *, seconds: float, params: Mapping[str, str] | None = None) -> Any:
        """Send GET and return the decoded JSON.

        Raises:
            ServerGone: No server answers, or the connection broke.
            GraceError: The call took longer than `seconds`, or the server answered with an error.
        """
        return self._run([("GET", path, None, params)], seconds)[0]

    def post(self, path: str, body: Any = None, *, seconds: float, params: Mapping[str, str] | None = None) -> Any:
        """Send POST and return the decoded JSON. It raises as `get` does."""
        return self._run([("POST", path, body, params)], seconds)[0]

    def post_all(self, path: str, bodies: Sequence[Any], *, seconds: float) -> list[Any]:
        """Send all POST requests at the same time, and return the answers in order. It raises as `get` does."""
        return self._run([("POST", path, body, None) for body in bodies], seconds)

    def healthy(self) -> bool:
        """Whether the server answers."""
        try:
            self.get("/health", seconds=_HEALTH_SECONDS)
        except GraceError:
            return False
        return True

    def _run(self, calls: Sequence[tuple[str, str, Any, Mapping[str, str] | None]], seconds: float) -> list[Any]:
        return asyncio.run(self._gather(calls, seconds))

    async def _gather(
        self, calls: Sequence[tuple[str, str, Any, Mapping[str, str] | None]], seconds: float
    ) -> list[Any]:
        try:
            async with asyncio.timeout(seconds), self._session() as session:
                return await self._answers(session, calls)
        except TimeoutError as error:
            raise GraceError(
                f"the vLLM server at {self.url} has not answered {calls[0][1]} within {seconds:g} s: its log "
                "shows whether it works or hangs. The limits are rollout.vllm.{start,sync,generate}_timeout"
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ServerGone(f"no vLLM server answers at {self.url} ({str(error) or type(error).__name__})") from error

    async def _answers(
        self, session: aiohttp.ClientSession, calls: Sequence[tuple[str, str, Any, Mapping[str, str] | None]]
    ) -> list[Any]:
        """Wait for the answers as long as the server lives: when its engine dies, it leaves some calls open."""

        async def answered() -> list[Any]:
            return list(await asyncio.gather(*(self._call(session, *call) for call in calls)))

        answers = asyncio.create_task(answered())
        death = asyncio.create_task(self._death(session))
        waited: list[asyncio.Task[Any]] = [answers, death]
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if not answers.done():
                raise ServerGone(f"the vLLM server at {self.url} leaves {calls[0][1]} open: {death.result()}")
            return answers.result()
        finally:
            answers.cancel()
            death.cancel()
            await asyncio.wait(waited)

    async def _death(self, session: aiohttp.ClientSession) -> str:
        """Return once the server has shown several times in a row that it is dead; a busy one answers late."""
        signs: list[str] = []
        while len(signs) < _SIGNS:
            await asyncio.sleep(_WATCH_SECONDS)
            sign = None
            try:
                limit = aiohttp.ClientTimeout(total=_HEALTH_SECONDS)
                async with session.get("/health", timeout=limit) as response:
                    if response.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                        sign = f"/health answers {response.status}"
            except aiohttp.ClientConnectorError:
                sign = "it takes no more connections"
            except (aiohttp.ClientError, TimeoutError):
                pass
            signs = [*signs, sign] if sign is not None else []
        return signs[-1]

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            self.url,
            headers=self._headers,
            connector=aiohttp.TCPConnector(limit=0),  # all at once: the server decides best what to batch
            timeout=aiohttp.ClientTimeout(total=None),
        )

    async def _call(
        self, session: aiohttp.ClientSession, method: str, path: str, body: Any, params: Mapping[str, str] | None
    ) -> Any:
        async with session.request(method, path, json=body, params=params) as response:
            if response.status >= 400:
                said = (await response.text()).strip()[:500]
                raise RefusedByServer(
                    f"the vLLM server at {self.url} refused {path}: {response.status} {said}", response.status
                )
            return await response.json() if response.content_type == "application/json" else await response.text()
