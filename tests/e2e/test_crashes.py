"""Journey: parts of a running stack are killed, one after the other, and come back without a restart of the rest."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from services.local_stack.postgres import answers
from services.local_stack.readiness import answers_http, worker_listens
from services.local_stack.state_folder import Endpoints, StateFolder
from services.local_stack.valkey import pings
from tests.conftest import PROJECT_ROOT
from tests.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

_PATIENCE_S = 240.0


@dataclass(frozen=True)
class RunningStack:
    """A stack of its own for this file, and how to look at it."""

    up: subprocess.Popen[bytes]
    endpoints: Endpoints

    def process(self, words: str) -> psutil.Process:
        """The program of the stack whose command line holds `words`."""
        return next(p for p in psutil.Process(self.up.pid).children() if words in " ".join(p.cmdline()))


@pytest.fixture(scope="module")
def stack(server_folder: Path, request: pytest.FixtureRequest) -> Iterator[RunningStack]:
    """`up` with the demo base model, or with the small pretrained one where the demo is not built."""
    base_model = PROJECT_ROOT / "demo" / "base"
    if not (base_model / "config.json").exists():
        base_model = request.getfixturevalue("shared_material") / "models" / "stories260K-hf"
    state = StateFolder(server_folder / "crashes")
    command = [sys.executable, "-m", "services.local_stack", "up", "--state", str(state.root), "--port", "0"]
    environment = {"PATH": "/usr/bin:/bin", "AMOE_BASE_MODEL": str(base_model)}
    up = subprocess.Popen(command, cwd=PROJECT_ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert up.stdout
    output = []
    for line in up.stdout:
        output.append(line.decode())
        if "is ready at" in output[-1]:
            break
    endpoints = state.endpoints()
    assert endpoints, "".join(output)
    yield RunningStack(up, endpoints)
    if up.poll() is None:
        up.kill()
    up.communicate()


def _generates(stack: RunningStack) -> bool:
    try:
        answer = httpx.post(
            f"{stack.endpoints.router}/generate",
            json={"inputs": "Once upon a time", "parameters": {"max_new_tokens": 4}},
            timeout=60,
        )
    except httpx.TransportError:
        return False
    if answer.status_code != 200:
        assert answer.json()["error"]["message"], "every failure says what is wrong"
    return answer.status_code == 200


@pytest.mark.parametrize(
    "words",
    ["expert_service", "trainer_worker", "valkey-server", "postgres", "router_service"],
    ids=["expert service", "worker", "valkey", "postgres", "router service"],
)
def test_a_killed_part_comes_back_and_the_others_stay(stack: RunningStack, words: str) -> None:
    everyone = ["expert_service", "trainer_worker", "valkey", "postgres", "router_service"]
    others = {name: stack.process(name).pid for name in everyone if name not in words}
    victim = stack.process(words)

    victim.send_signal(signal.SIGKILL)

    checks = {
        "expert_service": answers_http(f"{stack.endpoints.experts[0]}/ready"),
        "trainer_worker": worker_listens(stack.endpoints.redis_url),
        "valkey-server": pings(stack.endpoints.redis_url),
        "postgres": answers(stack.endpoints.database_url),
        "router_service": answers_http(f"{stack.endpoints.router}/ready"),
    }
    wait_until(
        lambda: not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE,
        seconds=_PATIENCE_S,
        every_s=0.2,
        what="the end of the victim",
    )
    wait_until(checks[words], seconds=_PATIENCE_S, every_s=0.2, what=f"{words} to come back")
    wait_until(lambda: _generates(stack), seconds=_PATIENCE_S, every_s=0.2, what="an answer to a prompt")
    wait_until(worker := checks["trainer_worker"], seconds=_PATIENCE_S, every_s=0.2, what="a worker that listens")
    assert worker()
    assert {name: stack.process(name).pid for name in others} == others


def test_ctrl_c_ends_every_process_in_time(stack: RunningStack) -> None:
    family = psutil.Process(stack.up.pid).children(recursive=True)

    stack.up.send_signal(signal.SIGINT)
    output, _ = stack.up.communicate(timeout=60)

    assert stack.up.returncode == 0
    assert output.decode().split("Stopping")[1].split("■")[1:] != []
    _, alive = psutil.wait_procs(family, timeout=5)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
