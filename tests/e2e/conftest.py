"""The whole stack as a user starts it: `adaptive-moe up` in a folder of its own, spoken to over HTTP only."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

PROJECT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 40.0
_UP = (sys.executable, "-m", "services.local_stack", "up")


@dataclass(frozen=True)
class RunningStack:
    """A stack, how to speak to it, and what a fault needs to know: its processes and where its replicas listen."""

    client: httpx.Client
    process: psutil.Process
    state: Path

    @property
    def experts(self) -> list[str]:
        """The replicas' addresses."""
        endpoints: dict[str, list[str]] = json.loads((self.state / "endpoints.json").read_text())
        return endpoints["experts"]

    def replica_process(self, url: str) -> psutil.Process:
        """The process of the replica at this address."""
        port = url.rpartition(":")[2]
        return next(
            child
            for child in self.process.children()
            if "services.expert_service.main" in child.cmdline()
            and child.environ()["AMOE_EXPERT_SERVICE__PORT"] == port
        )


@contextmanager
def running_stack(base_model: str, settings: dict[str, str] | None = None) -> Iterator[httpx.Client]:
    """Start `up` on free ports, yield a client of its router service, stop it as Ctrl-C does."""
    with running_replicas(base_model, settings) as stack:
        yield stack.client


@contextmanager
def running_replicas(
    base_model: str, settings: dict[str, str] | None = None, *, num_replicas: int = 1
) -> Iterator[RunningStack]:
    """The same with several expert services, and a hold on its processes."""
    state = Path(tempfile.mkdtemp(prefix="amoe-e2e-", dir="/var/tmp"))
    state.chmod(0o755)
    environment = {**os.environ, "AMOE_BASE_MODEL": base_model, **(settings or {})}
    log = (state / "up.log").open("wb")
    process = subprocess.Popen(
        [*_UP, "--state", str(state), "--port", "0", "--replicas", str(num_replicas)],
        cwd=PROJECT,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        address = _wait_until_ready(process, state)
        with httpx.Client(base_url=address, timeout=120.0) as client:
            yield RunningStack(client, psutil.Process(process.pid), state)
    finally:
        _stop(process)
        log.close()
        shutil.rmtree(state, ignore_errors=True)


def _wait_until_ready(process: subprocess.Popen[bytes], state: Path) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            address = str(json.loads((state / "endpoints.json").read_text())["router"])
            if httpx.get(f"{address}/ready", timeout=5.0).status_code == httpx.codes.OK:
                return address
        except (OSError, ValueError, KeyError, httpx.HTTPError):
            pass
        time.sleep(0.2)
    raise AssertionError(f"the stack did not become ready:\n{(state / 'up.log').read_text()[-8000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError("up did not stop after Ctrl-C") from None


@pytest.fixture(scope="module")
def demo_stack() -> Iterator[httpx.Client]:
    """The stack on the committed demo artifacts."""
    if not (PROJECT / "demo" / "base" / "model.safetensors").is_file():
        pytest.skip("demo artifacts are not built: run `adaptive-moe demo build`")
    with running_stack("demo/base") as client:
        yield client
