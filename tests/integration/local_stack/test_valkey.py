"""The embedded Valkey: real crashes."""

import stat
import subprocess
from pathlib import Path

import redis

from services.local_stack.ports import free_port
from services.local_stack.programs import start, stop
from services.local_stack.valkey import Valkey, open_valkey, pings


def test_data_survive_kill_9(tmp_path: Path) -> None:
    server = open_valkey(tmp_path, port=free_port())
    process = start(server.program(), output=subprocess.DEVNULL)
    with redis.Redis.from_url(server.url()) as client:
        client.set("kept", "7")

    process.kill()
    process.wait()
    again = open_valkey(tmp_path, port=free_port())
    process = start(again.program(), output=subprocess.DEVNULL)

    try:
        with redis.Redis.from_url(again.url()) as client:
            assert client.get("kept") == b"7"
    finally:
        stop(again.program(), process)


def test_the_password_is_needed_and_private(valkey: Valkey) -> None:
    assert pings(f"redis://127.0.0.1:{valkey.port}/0")() is False

    mode = (valkey.folder / "valkey.conf").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


def test_a_server_that_is_not_there_does_not_answer() -> None:
    assert pings(f"redis://127.0.0.1:{free_port()}/0")() is False
