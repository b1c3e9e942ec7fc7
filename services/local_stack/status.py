"""`adaptive-moe status`: does a stack run here, and which of its parts answer?"""

from dataclasses import dataclass

from services.local_stack.postgres import answers
from services.local_stack.readiness import answers_http, worker_listens
from services.local_stack.state_folder import StateFolder
from services.local_stack.valkey import pings


@dataclass(frozen=True)
class StackStatus:
    """Lines for a person, and whether everything is well."""

    lines: tuple[str, ...]
    all_answer: bool


def stack_status(state: StateFolder) -> StackStatus:
    """Ask each part of the running stack once."""
    endpoints = state.endpoints()
    if endpoints is None:
        return StackStatus((f"Nothing runs in {state.root}. Start it with `adaptive-moe up`.",), all_answer=False)
    checks = {
        "postgres": answers(endpoints.database_url),
        "valkey": pings(endpoints.redis_url),
        "worker": worker_listens(endpoints.redis_url),
        **{name: answers_http(f"{url}/ready") for name, url in endpoints.replicas.items()},
        "router": answers_http(f"{endpoints.router}/ready"),
    }
    results = {name: check() for name, check in checks.items()}
    lines = [f"Process {endpoints.pid} runs a stack in {state.root}; the router is at {endpoints.router}"]
    lines += [f"  {name:<10}{'ready' if ready else 'does not answer'}" for name, ready in results.items()]
    return StackStatus(tuple(lines), all(results.values()))
