"""What both HTTP services share: the one error shape, request ids, limits on bodies, and the API key.

Errors of every origin leave as `{"error": {"message", "type", "param", "code"}}`; no traceback ever leaves.
"""

import hmac
import re
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import SecretStr
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.shared.errors import AmoeError, Conflict, InvalidRequest, NotAuthorised, NotFound, PayloadTooLarge
from services.shared.telemetry import bound, get_logger

log = get_logger(__name__)

REQUEST_ID_HEADER: Final = "x-request-id"
OPEN_PATHS: Final = frozenset({"/live", "/ready"})
"""Probes: they answer without the API key."""
KEEP_ALIVE_S: Final = 75
"""How long an idle connection is kept: longer than clients keep theirs (httpx 5 s, which is uvicorn's default too), or
a request that is sent just as the connection is closed is lost without an answer."""

_SANE_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_NOT_MARKS: Final = bytes(set(range(256)) - set(b'"[]{}'))
_BLOCK_BYTES: Final = 64 * 1024
_STEPS: Final = np.zeros(256, dtype=np.int8)
_STEPS[list(b"[{")], _STEPS[list(b"]}")] = 1, -1
_LONGEST_MESSAGE: Final = 400
_LONGEST_PARAM: Final = 120
_PLACES: Final = (("body",), ("query",), ("path",), ("header",), ("cookie",))
_LONGEST_WAIT_S: Final = 120
"""Clients give up at once when Retry-After is longer (openai-python)."""

MoreFields = Callable[[Request, AmoeError], Mapping[str, Any]]
"""Top-level keys beside `error` that the clients of some route need."""


def new_request_id() -> str:
    """A fresh id, unique without coordination."""
    return f"req-{uuid.uuid4().hex}"


def error_response(error: AmoeError, more: Mapping[str, Any] | None = None) -> JSONResponse:
    """`error` as a response, with what clients need to retry well or not at all."""
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(min(_LONGEST_WAIT_S, max(1, round(error.retry_after_s))))
    if isinstance(error, Conflict):
        headers["x-should-retry"] = "false"
    if isinstance(error, NotAuthorised):
        headers["www-authenticate"] = "Bearer"
    return JSONResponse({**error.body(), **(more or {})}, status_code=error.status, headers=headers)


def install_error_handlers(app: FastAPI, more: MoreFields | None = None, *, union_tags: Collection[str] = ()) -> None:
    """Render our errors, FastAPI's validation errors and Starlette's HTTP errors in the one shape.

    `union_tags` are the values by which bodies of several kinds are told apart: pydantic puts them into paths.
    """

    def fields(request: Request, error: AmoeError) -> Mapping[str, Any]:
        return more(request, error) if more else {}

    async def own(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, AmoeError)
        if error.status >= 500:
            log.warning("request failed", path=request.url.path, code=error.error_code, reason=error.message)
        return error_response(error, fields(request, error))

    async def validation(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        invalid = explain_validation(error.errors(), union_tags)
        return error_response(invalid, fields(request, invalid))

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        known = _from_http(error, request)
        response = error_response(known, fields(request, known))
        response.status_code = error.status_code
        response.headers.update(error.headers or {})
        return response

    app.add_exception_handler(AmoeError, own)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(HTTPException, http)


def install_middleware(
    app: FastAPI,
    *,
    max_body_bytes: int,
    max_json_depth: int | None = None,
    upload_limits: Mapping[str, int] | None = None,
    api_key: SecretStr | None = None,
    open_files: re.Pattern[str] | None = None,
) -> None:
    """Request ids outermost, then the key, then the limits on bodies; `upload_limits` are for paths that take more,
    `open_files` those that anybody may read without the key."""
    if max_json_depth is not None:
        app.add_middleware(JsonDepthMiddleware, max_json_depth=max_json_depth)
    app.add_middleware(BodyLimitMiddleware, max_body_bytes=max_body_bytes, upload_limits=upload_limits or {})
    if api_key is not None:
        app.add_middleware(ApiKeyMiddleware, api_key=api_key, open_files=open_files)
    app.add_middleware(RequestIdMiddleware)


def explain_validation(problems: Sequence[Any], union_tags: Collection[str] = ()) -> InvalidRequest:
    """The first problem in one line with the path to its field, and how many more there are; never the input itself."""
    first = problems[0]
    param = _path(first["loc"], union_tags)
    if first["type"] == "json_invalid":
        return InvalidRequest(f"The body is not JSON: {first.get('ctx', {}).get('error', 'it cannot be read')}.")
    reason = " ".join(str(first["msg"]).removeprefix("Value error, ").split())[:_LONGEST_MESSAGE]
    others = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
    return InvalidRequest(f"{param}: {reason}{others}" if param else f"{reason}{others}", param=param or None)


def _path(location: Sequence[str | int], union_tags: Collection[str]) -> str:
    parts = location[1:] if location[:1] in _PLACES else location
    if len(parts) > 1 and parts[0] in union_tags:
        parts = parts[1:]
    return ".".join(map(str, parts))[:_LONGEST_PARAM]


def _from_http(error: HTTPException, request: Request) -> AmoeError:
    detail = str(error.detail)[:_LONGEST_MESSAGE]
    if error.status_code == 404:
        return NotFound(f"No route {request.url.path[:80]}: /docs lists them.", code="route_not_found")
    if error.status_code == 405:
        return InvalidRequest(f"{request.method[:16]} is not possible here: see /docs.", code="method_not_allowed")
    if error.status_code == 413:
        return PayloadTooLarge(detail)
    if error.status_code >= 500:
        return AmoeError(detail)
    return InvalidRequest(detail)


class RequestIdMiddleware:
    """Gives every request an id, in the logs and on every response; turns a bug into a 500 that says nothing else.

    A sane id in the request's own header is kept, so that callers can follow a request through their systems.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        is_given = _SANE_REQUEST_ID.fullmatch(given) is not None
        request_id = given if is_given else new_request_id()
        scope.setdefault("state", {}).update(request_id=request_id, request_id_is_given=is_given)
        with bound(request_id=request_id):
            await self._answer(scope, receive, send, request_id)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        started_at = time.perf_counter()
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception:
            log.exception("unexpected error", method=scope["method"], path=scope["path"])
            if status is not None:
                # The answer has begun: closing the connection is the only sign left.
                raise
            bug = AmoeError(f"Something unexpected happened; the log has it under request id {request_id}.")
            await error_response(bug)(scope, receive, send_with_id)
        finally:
            _log_access(scope, status, time.perf_counter() - started_at)


def _log_access(scope: Scope, status: int | None, seconds: float) -> None:
    write = log.debug if scope["path"] in {*OPEN_PATHS, "/metrics", "/status"} else log.info
    write("request", method=scope["method"], path=scope["path"][:200], status=status, ms=round(seconds * 1000, 1))


class ApiKeyMiddleware:
    """Wants `Authorization: Bearer <key>` on every path but the probes and files that are open to be read, also on
    those that do not exist."""

    def __init__(self, app: ASGIApp, *, api_key: SecretStr, open_files: re.Pattern[str] | None = None) -> None:
        self.app = app
        self._expected = f"Bearer {api_key.get_secret_value()}".encode()
        self._open_files = open_files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] == "http" and not self._is_open(scope):
            given = Headers(scope=scope).get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(given, self._expected):
                error = NotAuthorised("Send the API key as `Authorization: Bearer <key>`.")
                await error_response(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        if scope["path"] in OPEN_PATHS:
            return True
        is_read = scope["method"] in {"GET", "HEAD"}
        return is_read and self._open_files is not None and self._open_files.fullmatch(scope["path"]) is not None


class BodyLimitMiddleware:
    """Refuses bodies over the limit with 413: at once by their declared length, else when the limit is crossed."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, upload_limits: Mapping[str, int]) -> None:
        self.app = app
        self._max_body_bytes = max_body_bytes
        self._upload_limits = upload_limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self._upload_limits.get(scope["path"], self._max_body_bytes)
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdigit() and int(declared[:20]) > limit:
            await error_response(PayloadTooLarge(_too_large(limit)))(scope, receive, send)
            return
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > limit:
                # FastAPI lets this one through its body parser; any other would come out as a 400.
                raise HTTPException(413, _too_large(limit))
            return message

        await self.app(scope, counted, send)


class JsonDepthMiddleware:
    """Refuses JSON that is nested too deeply with 400, before anything takes it apart."""

    def __init__(self, app: ASGIApp, *, max_json_depth: int) -> None:
        self.app = app
        self._max_json_depth = max_json_depth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] != "http" or "json" not in Headers(scope=scope).get("content-type", ""):
            await self.app(scope, receive, send)
            return
        received: list[Message] = []
        checked = False

        async def whole() -> Message:
            """The body's messages once the last is there; what comes later (the client's leaving) as it comes."""
            nonlocal checked
            while not checked:
                received.append(await receive())
                if not received[-1].get("more_body", False):
                    checked = True
                    self._check(b"".join(message.get("body", b"") for message in received))
            return received.pop(0) if received else await receive()

        await self.app(scope, whole, send)

    def _check(self, body: bytes) -> None:
        if is_deeper(body, self._max_json_depth):
            # FastAPI lets this one through its body parser; any other would come out as a 400 without these words.
            raise HTTPException(400, f"The body is nested more than {self._max_json_depth} levels deep.")


def is_deeper(body: bytes, depth: int) -> bool:
    """Whether JSON is nested more than `depth` levels; what is no JSON may get either answer."""
    if body.count(b"[") + body.count(b"{") <= depth:
        return False
    # Without escapes every quote begins or ends a string; the rest is counted by the block, as bodies can be megabytes.
    marks = body.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _NOT_MARKS)
    level, in_string = 0, False
    for start in range(0, len(marks), _BLOCK_BYTES):
        block_T = np.frombuffer(marks, dtype=np.uint8, count=min(_BLOCK_BYTES, len(marks) - start), offset=start)
        inside_T = np.logical_xor.accumulate(block_T == ord('"')) ^ in_string
        levels_T = level + np.where(inside_T, 0, _STEPS[block_T]).cumsum()
        if levels_T.max() > depth:
            return True
        level, in_string = int(levels_T[-1]), bool(inside_T[-1])
    return False


def _too_large(limit: int) -> str:
    return f"The body is larger than the {limit:,} bytes accepted here."
