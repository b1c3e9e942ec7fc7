"""A Valkey server of our own: append-only file, loopback, a generated password."""

import os
import secrets
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from services.local_stack.binaries import find_valkey
from services.local_stack.ports import LOOPBACK
from services.local_stack.programs import Program, StopStep


@dataclass(frozen=True)
class Valkey:
    """A prepared server: where its data lies, and how it is reached."""

    folder: Path
    binary: Path
    password: str
    port: int

    def url(self, database: int = 0) -> str:
        """The redis:// address of a numbered database (0-15), password included."""
        return f"redis://:{self.password}@{LOOPBACK}:{self.port}/{database}"

    def program(self) -> Program:
        """The server as a program of the stack; ready when PING is answered."""
        return Program(
            name="valkey",
            argv=(str(self.binary), str(self.folder / "valkey.conf")),
            environment=dict(os.environ),
            folder=self.folder,
            is_ready=pings(self.url()),
            stop_steps=(StopStep(signal.SIGTERM, 10.0),),
        )


def open_valkey(folder: Path, *, port: int, disposable: bool = False) -> Valkey:
    """Write the server's configuration. `disposable` keeps nothing on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    configuration = folder / "valkey.conf"
    password = _kept_password(configuration) or secrets.token_hex(24)
    lines = [f"bind {LOOPBACK}", f"port {port}", f"requirepass {password}", "daemonize no", 'save ""']
    lines += ["appendonly no"] if disposable else ["appendonly yes", "appendfsync everysec"]
    # In a file and not on the command line, where other users could read the password.
    descriptor = os.open(configuration, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write("\n".join(lines) + "\n")
    return Valkey(folder, find_valkey(), password, port)


def pings(url: str) -> Callable[[], bool]:
    """A readiness check: does the server at `url` answer PING?"""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    # The caller asks again; the client's own retries would only make it wait for seconds.
    once = Retry(NoBackoff(), retries=0)

    def check() -> bool:
        client = redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2, retry=once)
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()

    return check


def _kept_password(configuration: Path) -> str | None:
    if not configuration.exists():
        return None
    words = [line.split(maxsplit=1) for line in configuration.read_text().splitlines()]
    return next((line[1] for line in words if line[:1] == ["requirepass"]), None)
