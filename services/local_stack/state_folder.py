"""The state folder of a local stack: who holds it, where its parts lie, where its services listen."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from services.local_stack.errors import AlreadyRunning
from services.local_stack.privileges import remove_folder


@dataclass(frozen=True)
class Endpoints:
    """Where the parts of a running stack are. The file holds passwords: only its owner may read it."""

    pid: int
    router: str
    experts: tuple[str, ...]
    database_url: str
    redis_url: str
    storage: str
    logs: str

    @property
    def replicas(self) -> dict[str, str]:
        """The expert services by the names of their programs: `expert`, or `expert-1`, `expert-2` and so on."""
        if len(self.experts) == 1:
            return {"expert": self.experts[0]}
        return {f"expert-{number}": url for number, url in enumerate(self.experts, start=1)}


class StateFolder:
    """Everything that a local stack keeps on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.postgres = self.root / "postgres"
        self.valkey = self.root / "valkey"
        self.storage = self.root / "storage"
        self.logs = self.root / "logs"
        self.process_records = self.root / "processes.json"
        self._lock = self.root / "up.lock"
        self._endpoints = self.root / "endpoints.json"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder for this process. Raises AlreadyRunning while another process does."""
        self.root.mkdir(parents=True, exist_ok=True)
        # Logs may hold what people wrote.
        self.logs.mkdir(mode=0o700, exist_ok=True)
        descriptor = self._open_lock()
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
            yield
        finally:
            self._endpoints.unlink(missing_ok=True)
            self._lock.unlink(missing_ok=True)
            os.close(descriptor)

    def holder(self) -> int | None:
        """The process id of the `up` that holds the folder now, None when nobody does."""
        try:
            descriptor = os.open(self._lock, os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(os.read(descriptor, 20) or b"0")
        finally:
            os.close(descriptor)
        return None

    def write_endpoints(self, endpoints: Endpoints) -> None:
        """Publish where the services are, in one step."""
        unfinished = self._endpoints.with_suffix(".unfinished")
        unfinished.unlink(missing_ok=True)
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(endpoints), file, indent=2)
        unfinished.rename(self._endpoints)

    def endpoints(self) -> Endpoints | None:
        """Where the services of the running stack are, None when none runs."""
        if self.holder() is None or not self._endpoints.exists():
            return None
        found = json.loads(self._endpoints.read_text())
        return Endpoints(**{**found, "experts": tuple(found["experts"])})

    def erase(self) -> None:
        """Remove the folder and everything in it."""
        remove_folder(self.postgres)
        shutil.rmtree(self.root, ignore_errors=True)

    def _open_lock(self) -> int:
        """A descriptor that holds the lock file; the kernel lets go of it however this process ends."""
        while True:
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = os.read(descriptor, 20).decode() or "unknown"
                os.close(descriptor)
                raise AlreadyRunning(
                    f"Process {pid} already runs a stack in {self.root}. Stop it with `adaptive-moe down "
                    f"--state {self.root}`, or start a second one with another --state and --port."
                ) from None
            if self._is_current(descriptor):
                return descriptor
            # The last holder removed the file between our two calls: what we hold has no name any more.
            os.close(descriptor)

    def _is_current(self, descriptor: int) -> bool:
        try:
            return self._lock.stat().st_ino == os.fstat(descriptor).st_ino
        except FileNotFoundError:
            return False
