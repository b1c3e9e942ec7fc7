"""How a stack is put together; nothing is started."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.local_stack.errors import PortTaken
from services.local_stack.ports import free_port
from services.local_stack.programs import Program
from services.local_stack.stack import PROJECT_ROOT, Stack, plan_stack, resolved_base_model
from services.local_stack.state_folder import StateFolder
from services.shared.config import RouterServiceSettings, Settings

EXTERNAL = {
    "AMOE_DATABASE__URL": "postgresql://someone:secret@db.example/amoe",
    "AMOE_REDIS_URL": "redis://cache.example:6379/3",
}


@pytest.fixture(autouse=True)
def external_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    """No embedded stores, so that planning leaves nothing on disk."""
    for name, value in EXTERNAL.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port on which somebody listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def _plan(tmp_path: Path, *, port: int | None = 0, num_replicas: int = 1) -> Stack:
    return plan_stack(Settings(), StateFolder(tmp_path), port=port, num_replicas=num_replicas)


def _program(stack: Stack, name: str) -> Program:
    return next(program for program in stack.programs if program.name == name)


def test_external_stores_replace_the_embedded_ones(tmp_path: Path) -> None:
    stack = _plan(tmp_path)

    assert [program.name for program in stack.programs] == ["expert", "migrate", "worker", "router"]
    assert stack.endpoints.database_url == EXTERNAL["AMOE_DATABASE__URL"]
    assert stack.endpoints.redis_url == EXTERNAL["AMOE_REDIS_URL"]


def test_the_usual_names_for_external_stores_work_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in EXTERNAL:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DATABASE_URL", "postgresql://usual@db.example/amoe")
    monkeypatch.setenv("REDIS_URL", "redis://usual.example:6379/0")

    endpoints = _plan(tmp_path).endpoints

    assert endpoints.database_url == "postgresql://usual@db.example/amoe"
    assert endpoints.redis_url == "redis://usual.example:6379/0"


def test_embedded_stores_come_first_when_no_others_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AMOE_REDIS_URL")

    stack = _plan(tmp_path)

    assert stack.programs[0].name == "valkey"
    assert "valkey" in _program(stack, "migrate").after
    assert _program(stack, "worker").environment["AMOE_REDIS_URL"] == stack.endpoints.redis_url


def test_processes_agree_on_where_they_meet(tmp_path: Path) -> None:
    stack = _plan(tmp_path)

    router, expert = _program(stack, "router").environment, _program(stack, "expert").environment

    assert json.loads(router["AMOE_ROUTER_SERVICE__EXPERT_URLS"]) == list(stack.endpoints.experts)
    assert stack.endpoints.experts[0].endswith(f":{expert['AMOE_EXPERT_SERVICE__PORT']}")
    assert router["AMOE_STORAGE__ROOT"] == expert["AMOE_STORAGE__ROOT"] == str(tmp_path / "storage")


def test_what_processes_get_is_readable_as_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = _plan(tmp_path)
    for name, value in _program(stack, "router").environment.items():
        monkeypatch.setenv(name, value)

    settings = Settings()

    assert settings.router_service.expert_urls == stack.endpoints.experts
    assert settings.telemetry.format == "json"


def test_each_replica_has_a_name_a_port_and_its_share_of_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)

    stack = _plan(tmp_path, num_replicas=3)

    programs = [_program(stack, f"expert-{number}") for number in (1, 2, 3)]
    ports = [program.environment["AMOE_EXPERT_SERVICE__PORT"] for program in programs]
    assert [url.rpartition(":")[2] for url in stack.endpoints.experts] == ports
    assert len({*ports, stack.endpoints.router.rpartition(":")[2]}) == 4
    assert {program.environment["AMOE_EXPERT_SERVICE__NUM_THREADS"] for program in programs} == {"2"}
    assert "AMOE_EXPERT_SERVICE__NUM_THREADS" not in _program(_plan(tmp_path), "expert").environment


def test_threads_that_the_settings_name_are_each_replicas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMOE_EXPERT_SERVICE__NUM_THREADS", "5")

    assert _program(_plan(tmp_path, num_replicas=2), "expert-2").environment["AMOE_EXPERT_SERVICE__NUM_THREADS"] == "5"


def test_a_replica_does_not_take_the_routers_port(tmp_path: Path) -> None:
    free = free_port()
    own = Settings().expert_service.model_copy(update={"port": free - 1})
    settings = Settings().model_copy(update={"expert_service": own})

    stack = plan_stack(settings, StateFolder(tmp_path), port=free, num_replicas=2)

    assert not any(url.endswith(f":{free}") for url in stack.endpoints.experts)


def test_what_is_written_of_the_endpoints_is_what_is_read(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    written = _plan(tmp_path, num_replicas=2).endpoints

    with state.held():
        state.write_endpoints(written)
        assert state.endpoints() == written
        assert list(written.replicas) == ["expert-1", "expert-2"]


def test_a_port_that_was_asked_for_must_be_free(tmp_path: Path, taken_port: int) -> None:
    with pytest.raises(PortTaken, match=f"Port {taken_port} is in use"):
        _plan(tmp_path, port=taken_port)


def test_the_default_port_gives_way_and_says_so(tmp_path: Path, taken_port: int) -> None:
    default = RouterServiceSettings.model_construct(_fields_set=set(), port=taken_port)
    settings = Settings().model_copy(update={"router_service": default})

    stack = plan_stack(settings, StateFolder(tmp_path), port=None)

    assert not stack.endpoints.router.endswith(f":{taken_port}")
    assert f"Port {taken_port} is in use" in stack.notes[0]


def test_a_folder_of_the_project_is_found_from_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)

    assert resolved_base_model("services/shared") == str(PROJECT_ROOT / "services" / "shared")
    assert resolved_base_model("some-hub/model") == "some-hub/model"
