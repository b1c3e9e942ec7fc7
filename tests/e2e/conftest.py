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
from pathlib import Path

import httpx
import pytest

PROJECT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 40.0


@contextmanager
def running_stack(base_model: str, settings: dict[str, str] | None = None) -> Iterator[httpx.Client]:
    """Start `up` on free ports, yield a client of its router service, stop it as Ctrl-C does."""
    state = Path(tempfile.mkdtemp(prefix="amoe-e2e-", dir="/var/tmp"))
    state.chmod(0o755)
    environment = {**os.environ, "AMOE_BASE_MODEL": base_model, **(settings or {})}
    log = (state / "up.log").open("wb")
    # A test run in the background ignores Ctrl-C, and what it starts would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "services.local_stack", "up", "--state", str(state), "--port", "0"],
        cwd=PROJECT,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        address = _wait_until_ready(process, state)
        with httpx.Client(base_url=address, timeout=120.0) as client:
            yield client
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
