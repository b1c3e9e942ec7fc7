"""Which programs make up a local stack, where they listen, and the settings that each of them gets."""

import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from services.local_stack.ports import LOOPBACK, PortClaims
from services.local_stack.postgres import open_postgres
from services.local_stack.process_records import MARKER
from services.local_stack.programs import Program, StopStep
from services.local_stack.readiness import answers_http, worker_listens
from services.local_stack.state_folder import Endpoints, StateFolder
from services.local_stack.valkey import open_valkey
from services.shared.config import Settings

PROJECT_ROOT: Final = Path(__file__).resolve().parents[2]
_POSTGRES_PORT: Final = 15432
_VALKEY_PORT: Final = 16379
_MODEL_LOAD_S: Final = 900.0
"""Long enough to fetch a base model from a hub, or to make a router that the demo lacks."""


@dataclass(frozen=True)
class Stack:
    """Programs in the order of their start, and where they will listen. Its ports are its own while it lives."""

    programs: tuple[Program, ...]
    endpoints: Endpoints
    notes: tuple[str, ...]
    claims: PortClaims


def plan_stack(settings: Settings, state: StateFolder, *, port: int | None, num_replicas: int = 1) -> Stack:
    """Choose ports and put the programs together; starts nothing. Raises PortTaken, MissingBinary."""
    claims = PortClaims()
    router_port = _router_port(settings, port, claims)
    expert_ports = _expert_ports(settings, num_replicas, claims)
    stores, database_url, redis_url = _plan_stores(settings, state, claims)
    host = settings.router_service.host
    endpoints = Endpoints(
        pid=os.getpid(),
        router=f"http://{LOOPBACK if host == '0.0.0.0' else host}:{router_port}",
        experts=tuple(f"http://{LOOPBACK}:{expert_port}" for expert_port in expert_ports),
        database_url=database_url,
        redis_url=redis_url,
        storage=str(_storage_root(settings, state)),
        logs=str(state.logs),
    )
    environment = _environment(settings, state, endpoints)
    programs = (
        *stores,
        *_replicas(settings, environment, endpoints),
        *_services(environment, endpoints, needs=tuple(store.name for store in stores)),
    )
    return Stack(programs, endpoints, _notes(settings, endpoints, port), claims)


def resolved_base_model(base_model: str) -> str:
    """A relative path to a folder of the project as an absolute one; anything else as it is."""
    for start in (PROJECT_ROOT, Path.cwd()):
        if (start / base_model).is_dir():
            return str(start / base_model)
    return base_model


def external_database(settings: Settings) -> str | None:
    """The database that settings or DATABASE_URL name; None when the embedded one is to run."""
    if "url" in settings.database.model_fields_set:
        return settings.database.url.get_secret_value()
    return os.environ.get("DATABASE_URL")


def external_redis(settings: Settings) -> str | None:
    """The Redis or Valkey that settings or REDIS_URL name; None when the embedded one is to run."""
    if "redis_url" in settings.model_fields_set:
        return settings.redis_url.get_secret_value()
    return os.environ.get("REDIS_URL")


def _plan_stores(settings: Settings, state: StateFolder, claims: PortClaims) -> tuple[list[Program], str, str]:
    """The embedded stores that are wanted, and the addresses of the database and of Redis."""
    programs = []
    if not (database_url := external_database(settings)):
        postgres = open_postgres(state.postgres, port=claims.preferred(_POSTGRES_PORT))
        database_url = postgres.url()
        programs.append(postgres.program())
    if not (redis_url := external_redis(settings)):
        valkey = open_valkey(state.valkey, port=claims.preferred(_VALKEY_PORT))
        redis_url = valkey.url()
        programs.append(valkey.program())
    return programs, database_url, redis_url


def _router_port(settings: Settings, port: int | None, claims: PortClaims) -> int:
    """A port that a person asked for must be free; the default gives way to another."""
    chosen = settings.router_service
    if port is None and "port" in chosen.model_fields_set:
        port = chosen.port
    if port is None:
        return claims.preferred(chosen.port, host=chosen.host)
    return claims.demanded(port, host=chosen.host)


def _expert_ports(settings: Settings, num_replicas: int, claims: PortClaims) -> list[int]:
    """The port of the settings and those after it, as far as they are free."""
    first = settings.expert_service.port
    return [claims.preferred(first and first + index) for index in range(num_replicas)]


def _storage_root(settings: Settings, state: StateFolder) -> Path:
    chosen = settings.storage
    return chosen.root.resolve() if "root" in chosen.model_fields_set else state.storage


def _environment(settings: Settings, state: StateFolder, endpoints: Endpoints) -> dict[str, str]:
    """What every process of the stack gets: our environment, and over it what this stack decides."""
    decided = {
        "AMOE_BASE_MODEL": resolved_base_model(settings.base_model),
        "AMOE_DATABASE__URL": endpoints.database_url,
        "AMOE_REDIS_URL": endpoints.redis_url,
        "AMOE_STORAGE__ROOT": endpoints.storage,
        "AMOE_ROUTER_SERVICE__HOST": settings.router_service.host,
        "AMOE_ROUTER_SERVICE__PORT": _port_of(endpoints.router),
        "AMOE_ROUTER_SERVICE__EXPERT_URLS": json.dumps(endpoints.experts),
        "AMOE_EXPERT_SERVICE__HOST": LOOPBACK,
        "AMOE_TELEMETRY__FORMAT": "json",
        "AMOE_CONFIG": str(Path(os.environ.get("AMOE_CONFIG", "config.yaml")).resolve()),
        MARKER: str(state.root),
        "PYTHONUNBUFFERED": "1",
        # Progress bars are for terminals; these processes write to log files.
        "TQDM_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return {**os.environ, **decided}


def _replicas(settings: Settings, environment: Mapping[str, str], endpoints: Endpoints) -> list[Program]:
    """The expert services. They need none of the stores and load their models meanwhile."""
    chosen = settings.expert_service.num_threads
    num_threads = chosen or (max(1, num_cores() // len(endpoints.experts)) if len(endpoints.experts) > 1 else None)
    # More threads than cores slow every replica down: they share the cores unless the settings say otherwise.
    threads = {"AMOE_EXPERT_SERVICE__NUM_THREADS": str(num_threads)} if num_threads else {}
    return [
        _python(
            name,
            "services.expert_service.main",
            {**environment, **threads, "AMOE_EXPERT_SERVICE__PORT": _port_of(url)},
            is_ready=answers_http(f"{url}/ready"),
            rank=1,
            ready_timeout_s=_MODEL_LOAD_S,
        )
        for name, url in endpoints.replicas.items()
    ]


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _services(environment: Mapping[str, str], endpoints: Endpoints, *, needs: tuple[str, ...]) -> list[Program]:
    """Everything but the stores and the expert services."""
    one_thread = {**environment, "OMP_NUM_THREADS": "1"}
    return [
        _python(
            "migrate",
            "services.local_stack",
            one_thread,
            arguments=("migrate", "--bootstrap"),
            after=needs,
            ready_timeout_s=_MODEL_LOAD_S,
        ),
        _python(
            "worker",
            "services.trainer_worker.main",
            # Threads that spin while they wait would take from the replicas the cores that they share.
            {"OMP_WAIT_POLICY": "PASSIVE", **environment},
            is_ready=worker_listens(endpoints.redis_url),
            rank=1,
            after=("migrate",),
            # SIGTERM lets a job save its checkpoint and go back to the queue; SIGQUIT ends the worker at once.
            stop_steps=(StopStep(signal.SIGTERM, 15.0), StopStep(signal.SIGQUIT, 3.0)),
        ),
        _python(
            "router",
            "services.router_service.main",
            one_thread,
            is_ready=answers_http(f"{endpoints.router}/ready"),
            rank=2,
            after=("migrate",),
            ready_timeout_s=_MODEL_LOAD_S,
        ),
    ]


def _python(
    name: str,
    module: str,
    environment: Mapping[str, str],
    *,
    arguments: tuple[str, ...] = (),
    after: tuple[str, ...] = (),
    **treatment: Any,
) -> Program:
    """A Python module as a program of the stack, run in the project's folder."""
    argv = (sys.executable, "-m", module, *arguments)
    return Program(name, argv, environment, PROJECT_ROOT, after=after, **treatment)


def _port_of(url: str) -> str:
    return url.rpartition(":")[2]


def _notes(settings: Settings, endpoints: Endpoints, port: int | None) -> tuple[str, ...]:
    """What a person should know before they look for the stack at its usual places."""
    usual = settings.router_service.port
    if port is None and _port_of(endpoints.router) != str(usual):
        return (f"Port {usual} is in use by another program: the router listens on {_port_of(endpoints.router)}.",)
    return ()
