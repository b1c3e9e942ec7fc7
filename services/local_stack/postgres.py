"""A Postgres cluster of our own: made once, then run as a program of the stack.

It listens on 127.0.0.1 only, wants a generated password (scram), and runs as `nobody` when we are root.
"""

import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import psycopg
from psycopg import sql

from services.local_stack.binaries import find_postgres
from services.local_stack.errors import ProgramFailed
from services.local_stack.ports import LOOPBACK
from services.local_stack.privileges import is_reachable, reachable_folder, unprivileged_account
from services.local_stack.programs import Account, Program, StopStep, spawn

USER: Final = "amoe"
DATABASE: Final = "amoe"
_TEST_PROFILE: Final = ("fsync=off", "full_page_writes=off", "synchronous_commit=off", "shared_buffers=32MB")


@dataclass(frozen=True)
class Postgres:
    """A cluster: where it lies, and how it is reached."""

    home: Path
    installed: Path
    password: str
    port: int
    account: Account | None
    disposable: bool

    @property
    def data(self) -> Path:
        """The cluster's data directory."""
        return self.home / "data"

    @property
    def binaries(self) -> Path:
        """Programs that the server's user can execute: a copy beside the data when those are in a private home."""
        if self.account is None or is_reachable(self.installed):
            return self.installed
        installation = self.installed.parent
        return self.home / "programs" / installation.parent.name / installation.name / "bin"

    def url(self, database: str = DATABASE) -> str:
        """The SQLAlchemy address of a database, password included."""
        return f"postgresql+psycopg://{USER}:{self.password}@{LOOPBACK}:{self.port}/{database}"

    def program(self) -> Program:
        """The server as a program of the stack; ready when it answers and our database exists."""
        options = [f"listen_addresses={LOOPBACK}", f"port={self.port}", "unix_socket_directories="]
        options += _TEST_PROFILE if self.disposable else ()
        arguments = [argument for option in options for argument in ("-c", option)]
        return Program(
            name="postgres",
            argv=(str(self.binaries / "postgres"), "-D", str(self.data), *arguments),
            environment=_plain_environment(),
            folder=self.home,
            prepare=self.prepare,
            is_ready=self._has_database,
            account=self.account,
            # SIGINT is Postgres' fast shutdown, SIGQUIT its immediate one; SIGTERM would wait for its clients.
            death_signal=signal.SIGINT,
            stop_steps=(StopStep(signal.SIGINT, 15.0), StopStep(signal.SIGQUIT, 5.0)),
        )

    def prepare(self) -> None:
        """Make the cluster unless it is there, and clear what a killed server left."""
        if self.binaries != self.installed:
            _copy_installation(self.installed, self.binaries)
        if not (self.data / "PG_VERSION").exists():
            self._initialise()
        _clear_dead_lock(self.data)

    def _has_database(self) -> bool:
        try:
            with psycopg.connect(plain_address(self.url("postgres")), connect_timeout=2, autocommit=True) as connection:
                known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone()
                if not known:
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
        except psycopg.OperationalError:
            return False
        return True

    def _initialise(self) -> None:
        """Run initdb into a folder that appears under its name only when it is complete."""
        unfinished = self.home / "data.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        password_file = self.home / "initdb.password"
        _write_secret(password_file, self.password)
        if self.account:
            for path in (unfinished, password_file):
                os.chown(path, self.account.user_id, self.account.group_id)
        self._run_initdb(unfinished, password_file)
        password_file.unlink()
        unfinished.rename(self.data)

    def _run_initdb(self, folder: Path, password_file: Path) -> None:
        command = [str(self.binaries / "initdb"), "-D", str(folder), "-U", USER, "--encoding=UTF8", "--locale=C"]
        command += ["--auth=scram-sha-256", f"--pwfile={password_file}", "--no-instructions"]
        command += ["--no-sync"] if self.disposable else []
        environment = _plain_environment()
        initdb = Program("initdb", tuple(command), environment, folder=self.home, account=self.account)
        process = spawn(initdb, output=subprocess.PIPE)
        output, _ = process.communicate()
        if process.returncode != 0:
            raise ProgramFailed(f"initdb failed: {output.decode(errors='replace').strip()}")


def open_postgres(folder: Path, *, port: int, disposable: bool = False) -> Postgres:
    """The cluster of `folder`, prepared when its program starts. `disposable` trades safety for speed."""
    account = unprivileged_account()
    folder.mkdir(parents=True, exist_ok=True)
    home = reachable_folder(folder) if account else folder
    version = home / "data" / "PG_VERSION"
    major = int(version.read_text().split(".")[0]) if version.exists() else None
    return Postgres(home, find_postgres(major=major), _password(home / "password"), port, account, disposable)


def plain_address(url: str) -> str:
    """A SQLAlchemy address as libpq and psycopg write it."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme.partition('+')[0]}{separator}{rest}"


def answers(url: str) -> Callable[[], bool]:
    """A readiness check: does the database at `url` answer `SELECT 1`?"""

    def check() -> bool:
        try:
            with psycopg.connect(plain_address(url), connect_timeout=2, autocommit=True) as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    return check


def _copy_installation(installed: Path, copy: Path) -> None:
    """Copy the parts of an installation that a server needs; complete or absent."""
    source, target = installed.parent, copy.parent
    if copy.exists():
        return
    unfinished = target.with_name(f"{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for part in ("lib", "share"):
        shutil.copytree(source / part, unfinished / part, symlinks=True)
    (unfinished / "bin").mkdir()
    for name in ("initdb", "postgres"):
        shutil.copy2(installed / name, unfinished / "bin" / name)
    # A wheel keeps the libraries that it brings beside its package, and its programs look for them there.
    libraries = source.parent.with_name(f"{source.parent.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, target.parent.with_name(libraries.name), symlinks=True, dirs_exist_ok=True)
    unfinished.rename(target)


def _password(file: Path) -> str:
    if not file.exists():
        _write_secret(file, secrets.token_hex(24))
    return file.read_text()


def _write_secret(file: Path, text: str) -> None:
    """Replace `file` by one that only its owner may read."""
    file.unlink(missing_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        opened.write(text)


def _clear_dead_lock(data: Path) -> None:
    """Remove the lock file of a server that no longer lives; a zombie, which a container may never reap, does not."""
    lock = data / "postmaster.pid"
    if not lock.exists():
        return
    try:
        holder = psutil.Process(int(lock.read_text().split()[0]))
        lives = holder.status() != psutil.STATUS_ZOMBIE and "postgres" in holder.name()
    except (psutil.NoSuchProcess, ValueError, IndexError):
        lives = False
    if not lives:
        lock.unlink()


def _plain_environment() -> dict[str, str]:
    """Our environment without variables that would steer Postgres' own programs elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}
