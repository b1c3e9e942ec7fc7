"""One expert replica over HTTP: what can be asked of it, and how its failures read."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from services.shared.errors import (
    AmoeError,
    Conflict,
    ExpertServiceFailed,
    InvalidAdapter,
    InvalidRequest,
    NotFound,
    OutOfRoom,
    Overloaded,
    PromptTooLong,
    Unavailable,
)
from services.shared.schemas.sequences import (
    AdapterCheckRequest,
    AdapterReport,
    BaseModelInfo,
    PinnedAdapters,
    ReplicaStatus,
    ScoresRequest,
    ScoresResponse,
    SequenceEvent,
    SequenceRequest,
)

Answer = TypeVar("Answer", bound=BaseModel)

_EVENT: Final[TypeAdapter[SequenceEvent]] = TypeAdapter(SequenceEvent)
_JSON: Final = {"content-type": "application/json"}
_KINDS: Final[dict[int, type[AmoeError]]] = {
    404: NotFound,
    409: Conflict,
    413: PromptTooLong,
    422: InvalidAdapter,
    429: Overloaded,
    503: Unavailable,
    507: OutOfRoom,
}
_LONGEST_ERROR_BYTES: Final = 64 * 1024
_CHECK_TIMEOUT_S: Final = 120.0
_STATUS_TIMEOUT_S: Final = 5.0
_RETRY_AFTER_S: Final = 2.0


class ConnectionBroken(ExpertServiceFailed):
    """502: the connection to a replica ended before its answer did."""

    code = "expert_service_broke_off"


class ReplicaDown(Unavailable):
    """503: a replica does not accept connections."""

    code = "expert_service_unavailable"


class ExpertClient:
    """Asks one replica. Closing a stream of events cancels its sequence."""

    def __init__(self, url: str, http: httpx.AsyncClient) -> None:
        self.url = url.rstrip("/")
        self._http = http

    @asynccontextmanager
    async def sequence(self, request: SequenceRequest) -> AsyncIterator[AsyncIterator[SequenceEvent]]:
        """The events of one sequence; raises before the first if the replica refuses it."""
        content = request.model_dump_json()
        headers = {**_JSON, "accept-encoding": "identity", "x-request-id": request.request_id}
        with _translated(self.url):
            stream = self._http.stream("POST", f"{self.url}/sequences", content=content, headers=headers)
            async with stream as response:
                if response.status_code != httpx.codes.OK:
                    raise _refusal(response.status_code, await _start_of(response), response.headers)
                yield self._events(response)

    async def _events(self, response: httpx.Response) -> AsyncIterator[SequenceEvent]:
        buffer = b""
        with _translated(self.url):
            async for chunk in response.aiter_raw():
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    if line.strip():
                        yield _event(line)
        if buffer.strip():
            yield _event(buffer)

    async def pin(self, digests: tuple[str, ...]) -> PinnedAdapters:
        """Have it keep exactly these adapters in slots; Conflict when there is no room for all of them."""
        return await self._send("PUT", "/pins", PinnedAdapters(digests=digests), PinnedAdapters)

    async def scores(self, request: ScoresRequest) -> ScoresResponse:
        """What the gate makes of a prompt."""
        return await self._post("/scores", request, ScoresResponse)

    async def check_adapter(self, digest: str) -> AdapterReport:
        """Verify a published adapter against the hosted base model; InvalidAdapter says what is wrong with it."""
        return await self._post("/adapters/check", AdapterCheckRequest(digest=digest), AdapterReport)

    async def base(self) -> BaseModelInfo:
        """The hosted base model."""
        return await self._get("/base", BaseModelInfo)

    async def status(self) -> ReplicaStatus:
        """Load and residency."""
        return await self._get("/status", ReplicaStatus)

    async def drain(self) -> ReplicaStatus:
        """Have it take no new sequences."""
        return await self._post("/drain", None, ReplicaStatus)

    async def undrain(self) -> ReplicaStatus:
        """Have it take sequences again."""
        return await self._post("/undrain", None, ReplicaStatus)

    async def _get(self, path: str, kind: type[Answer]) -> Answer:
        with _translated(self.url):
            response = await self._http.get(f"{self.url}{path}", timeout=_STATUS_TIMEOUT_S)
        return _read(response, kind)

    async def _post(self, path: str, body: BaseModel | None, kind: type[Answer]) -> Answer:
        return await self._send("POST", path, body, kind)

    async def _send(self, method: str, path: str, body: BaseModel | None, kind: type[Answer]) -> Answer:
        content = "" if body is None else body.model_dump_json()
        with _translated(self.url):
            response = await self._http.request(
                method, f"{self.url}{path}", content=content, headers=_JSON, timeout=_CHECK_TIMEOUT_S
            )
        return _read(response, kind)


class _translated:  # noqa: N801 - reads as a verb in a with statement
    """Turns httpx's failures into ours."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
            raise ReplicaDown(
                "The expert service does not answer: try again shortly.", retry_after_s=_RETRY_AFTER_S
            ) from error
        if isinstance(error, httpx.HTTPError | httpx.StreamError):
            raise ConnectionBroken(
                f"The expert service broke off ({type(error).__name__}): send the request again."
            ) from error


def _event(line: bytes) -> SequenceEvent:
    try:
        return _EVENT.validate_json(line)
    except ValidationError as error:
        raise ExpertServiceFailed(
            "The expert service sent an event that this version does not know: run the same version of both services."
        ) from error


def _read(response: httpx.Response, kind: type[Answer]) -> Answer:
    if response.status_code != httpx.codes.OK:
        raise _refusal(response.status_code, response.content[:_LONGEST_ERROR_BYTES], response.headers)
    try:
        return kind.model_validate_json(response.content)
    except ValidationError as error:
        raise ExpertServiceFailed(
            "The expert service sent an answer that this version does not know: run the same version of both services."
        ) from error


async def _start_of(response: httpx.Response) -> bytes:
    content = b""
    async for chunk in response.aiter_raw():
        content += chunk
        if len(content) >= _LONGEST_ERROR_BYTES:
            break
    return content[:_LONGEST_ERROR_BYTES]


def _refusal(status: int, content: bytes, headers: httpx.Headers) -> AmoeError:
    """A replica's error as ours, its message kept."""
    try:
        error: dict[str, Any] = json.loads(content)["error"]
        message, code, param = str(error["message"]), str(error["code"]), error.get("param")
    except (ValueError, KeyError, TypeError):
        return ExpertServiceFailed(f"The expert service answered {status} without a reason; its log has more.")
    kind = _kind_of(status)
    return kind(message, code=code, param=param, retry_after_s=_retry_after(headers))


def _kind_of(status: int) -> type[AmoeError]:
    return _KINDS.get(status, InvalidRequest if status < 500 else ExpertServiceFailed)


def _retry_after(headers: httpx.Headers) -> float | None:
    value = headers.get("retry-after", "")
    return float(value) if value.isdigit() else None
