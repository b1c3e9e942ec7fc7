"""Errors, request ids, limits and the key, as a client sees them."""

import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Body, FastAPI, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, SecretStr

from services.shared.errors import Conflict, Overloaded
from services.shared.web import install_error_handlers, install_middleware, is_deeper

CANARY = "SECRET-INPUT"


class Parameters(BaseModel):
    temperature: float = Field(ge=0)


class Question(BaseModel):
    model_config = {"extra": "forbid"}

    parameters: Parameters


routes = APIRouter()


@routes.get("/live")
async def live() -> dict[str, str]:
    return {}


@routes.post("/ask")
async def ask(question: Question) -> dict[str, float]:
    return {"temperature": question.parameters.temperature}


@routes.post("/upload")
async def upload(body: Annotated[dict[str, str], Body()]) -> int:
    return len(body["text"])


@routes.get("/conflict")
async def conflict() -> None:
    raise Conflict("Not now.", code="busy")


@routes.get("/full")
async def full(wait_s: Annotated[float, Query()]) -> None:
    raise Overloaded("Full.", retry_after_s=wait_s)


@routes.get("/bug")
async def bug() -> None:
    raise ZeroDivisionError(CANARY)


@routes.get("/stream")
async def stream() -> StreamingResponse:
    async def lines() -> AsyncIterator[bytes]:
        yield b"one"

    return StreamingResponse(lines())


def build_app(*, api_key: str | None = None) -> FastAPI:
    app = FastAPI()
    install_error_handlers(app)
    install_middleware(
        app,
        max_body_bytes=1000,
        max_json_depth=9,
        upload_limits={"/upload": 5000},
        api_key=SecretStr(api_key) if api_key else None,
    )
    app.include_router(routes)
    return app


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


class TestErrorShape:
    async def test_a_wrong_field_is_named_by_its_path_and_its_value_is_not_echoed(self) -> None:
        async with client_of(build_app()) as client:
            response = await client.post("/ask", json={"parameters": {"temperature": CANARY}})

        assert response.status_code == 400
        error = response.json()["error"]
        assert error["param"] == "parameters.temperature"
        assert error["code"] == "invalid_request"
        assert "\n" not in error["message"]
        assert CANARY not in response.text

    async def test_a_huge_unknown_key_is_cut(self) -> None:
        async with client_of(build_app()) as client:
            response = await client.post("/ask", json={"k" * 900: 1})

        assert response.status_code == 400
        assert len(response.text) < 800

    @pytest.mark.parametrize(
        "body",
        [b"{", b"", b"[" * 900, b"\xff\xfe", b'{"parameters": {"temperature": 1e999}}'],
        ids=["cut off", "empty", "deep", "not utf-8", "infinite"],
    )
    async def test_bodies_that_are_no_json_are_a_400(self, body: bytes) -> None:
        async with client_of(build_app()) as client:
            response = await client.post("/ask", content=body, headers={"content-type": "application/json"})

        assert response.status_code == (200 if b"1e999" in body else 400)

    async def test_a_conflict_is_not_retried_by_clients(self) -> None:
        async with client_of(build_app()) as client:
            response = await client.get("/conflict")

        assert response.status_code == 409
        assert response.headers["x-should-retry"] == "false"
        assert response.json() == {
            "error": {"message": "Not now.", "type": "conflict_error", "param": None, "code": "busy"}
        }

    @pytest.mark.parametrize(("wait_s", "header"), [(0.01, "1"), (7, "7"), (1e6, "120")])
    async def test_retry_after_is_whole_seconds_that_clients_still_wait_for(self, wait_s: float, header: str) -> None:
        async with client_of(build_app()) as client:
            response = await client.get("/full", params={"wait_s": wait_s})

        assert response.headers["retry-after"] == header

    async def test_a_bug_is_a_500_without_its_traceback_but_with_the_request_id(self) -> None:
        async with client_of(build_app()) as client:
            response = await client.get("/bug")

        assert response.status_code == 500
        assert response.headers["x-request-id"] in response.json()["error"]["message"]
        assert CANARY not in response.text

    async def test_unknown_routes_and_methods_have_the_shape_and_keep_their_headers(self) -> None:
        async with client_of(build_app()) as client:
            missing = await client.get("/nowhere")
            wrong_method = await client.delete("/ask")

        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "route_not_found")
        assert (wrong_method.status_code, wrong_method.headers["allow"]) == (405, "POST")


class TestRequestId:
    @pytest.mark.parametrize("path", ["/live", "/conflict", "/stream", "/nowhere", "/bug"])
    async def test_every_answer_carries_one(self, path: str) -> None:
        async with client_of(build_app()) as client:
            assert (await client.get(path)).headers["x-request-id"].startswith("req-")

    async def test_a_sane_one_is_kept(self) -> None:
        async with client_of(build_app()) as client:
            response = await client.get("/live", headers={"x-request-id": "trace:1.a-b_c"})

        assert response.headers["x-request-id"] == "trace:1.a-b_c"

    @pytest.mark.parametrize("given", ["a b", "x" * 129, "{}", ""])
    async def test_any_other_is_replaced(self, given: str) -> None:
        async with client_of(build_app()) as client:
            response = await client.get("/live", headers={"x-request-id": given})

        assert response.headers["x-request-id"].startswith("req-")


class TestBodyLimit:
    async def test_a_declared_length_over_the_limit_is_refused(self) -> None:
        async with client_of(build_app()) as client:
            response = await client.post("/ask", content=b"x" * 1001)

        assert (response.status_code, response.json()["error"]["code"]) == (413, "payload_too_large")

    async def test_so_is_a_body_that_grows_over_it_undeclared(self) -> None:
        async def grow() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield b"x" * 100

        async with client_of(build_app()) as client:
            response = await client.post("/ask", content=grow(), headers={"content-type": "application/json"})

        assert (response.status_code, response.json()["error"]["code"]) == (413, "payload_too_large")

    async def test_upload_paths_take_more(self) -> None:
        async with client_of(build_app()) as client:
            response = await client.post("/upload", json={"text": "x" * 2000})

        assert response.json() == 2000


def nested(depth: int, innermost: Any = 1) -> Any:
    return {"a": [nested(depth - 2, innermost)]} if depth > 1 else innermost if depth == 0 else [innermost]


def depth_of(value: Any) -> int:
    """The obvious way to count levels."""
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


class TestJsonDepth:
    @pytest.mark.parametrize(
        "value",
        [
            [],
            nested(7),
            [nested(6), nested(2), {"b": nested(5)}],
            nested(3, "[[[[{{{{"),
            nested(2, '"[{' * 50),
            nested(2, '\\"[[' * 50),
            nested(2, '\\\\"\\["'),
            {'\\"[[[': nested(4)},
            [[]] * 200,
            [{"text": "x" * 70_000}, nested(6)],
            ["[" * 70_000, nested(6)],
        ],
        ids=range(11),
    )
    def test_agrees_with_counting_what_was_parsed(self, value: Any) -> None:
        body = json.dumps(value).encode()

        assert is_deeper(body, depth_of(value)) is False
        assert is_deeper(body, depth_of(value) - 1) is True

    def test_megabytes_take_milliseconds(self) -> None:
        bodies = [b"[" * 6_000_000, b"[]," * 2_000_000, b'"[' * 3_000_000, b'"' + rb"\"" * 3_000_000 + b"[" * 100]

        started_at = time.process_time()
        for body in bodies:
            is_deeper(body, 64)

        assert time.process_time() - started_at < 1.0

    async def test_a_body_that_is_too_deep_is_refused_before_it_is_taken_apart(self) -> None:
        async with client_of(build_app()) as client:
            deep = await client.post("/ask", json=nested(10))
            flat = await client.post("/ask", json=nested(9))

        assert deep.status_code == flat.status_code == 400
        assert "9 levels" in deep.json()["error"]["message"]
        assert flat.json()["error"]["param"] == "parameters"

    async def test_what_comes_in_pieces_is_read_whole(self) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            for byte in b'{"parameters": {"temperature": 0.5}}':
                yield bytes([byte])

        async with client_of(build_app()) as client:
            answer = await client.post("/ask", content=pieces(), headers={"content-type": "application/json"})

        assert answer.json() == {"temperature": 0.5}


class TestApiKey:
    @pytest.mark.parametrize("path", ["/ask", "/docs", "/openapi.json", "/nowhere"])
    async def test_nothing_but_probes_answers_without_it(self, path: str) -> None:
        async with client_of(build_app(api_key="k1")) as client:
            response = await client.get(path)

        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["x-request-id"]

    @pytest.mark.parametrize("header", ["Bearer k2", "k1", "Bearer k1 ", "Bearer ké"])
    async def test_a_wrong_one_is_refused(self, header: str) -> None:
        async with client_of(build_app(api_key="k1")) as client:
            response = await client.get("/stream", headers={b"authorization": header.encode("latin-1")})

        assert response.status_code == 401

    async def test_with_it_and_for_probes_without_it_routes_answer(self) -> None:
        async with client_of(build_app(api_key="k1")) as client:
            probe = await client.get("/live")
            answer = await client.get("/stream", headers={"authorization": "Bearer k1"})

        assert (probe.status_code, answer.status_code) == (200, 200)
