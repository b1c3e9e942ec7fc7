"""The embedded Postgres: real initdb, real crashes."""

import os
import shutil
import subprocess
from pathlib import Path

import psycopg
import pytest

from services.local_stack.binaries import find_postgres
from services.local_stack.errors import MissingBinary
from services.local_stack.ports import free_port
from services.local_stack.postgres import Postgres, open_postgres, plain_address
from services.local_stack.programs import start, stop


def _run(server: Postgres, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(plain_address(server.url()), autocommit=True) as connection:
        cursor = connection.execute(statement)  # type: ignore[call-overload]
        return cursor.fetchall() if cursor.description else []


def test_rows_survive_kill_9_and_the_port_may_change(public_folder: Path) -> None:
    first = open_postgres(public_folder / "postgres", port=free_port())
    process = start(first.program(), output=subprocess.DEVNULL)
    _run(first, "CREATE TABLE kept (n int)")
    _run(first, "INSERT INTO kept VALUES (7)")

    process.kill()
    process.wait()
    second = open_postgres(public_folder / "postgres", port=free_port())
    process = start(second.program(), output=subprocess.DEVNULL)

    try:
        assert _run(second, "SELECT n FROM kept") == [(7,)]
    finally:
        stop(second.program(), process)


@pytest.fixture(scope="module")
def stopped_server(server_folder: Path) -> Postgres:
    """A cluster that is not running."""
    server = open_postgres(server_folder / "stopped", port=free_port(), disposable=True)
    server.prepare()
    return server


def test_a_clean_stop_leaves_no_lock(stopped_server: Postgres) -> None:
    process = start(stopped_server.program(), output=subprocess.DEVNULL)

    stop(stopped_server.program(), process)

    assert process.returncode == 0
    assert not (stopped_server.data / "postmaster.pid").exists()


@pytest.mark.parametrize(
    "content", ["999999999\n", "", f"{os.getpid()}\n"], ids=["no process", "empty", "not postgres"]
)
def test_a_dead_servers_lock_does_not_block_the_start(stopped_server: Postgres, content: str) -> None:
    server = stopped_server
    (server.data / "postmaster.pid").write_text(content)

    process = start(server.program(), output=subprocess.DEVNULL)

    stop(server.program(), process)


def test_the_password_is_needed(postgres: Postgres) -> None:
    address = plain_address(postgres.url("postgres")).replace(postgres.password, "wrong")

    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(address)


def test_it_listens_on_loopback_only(postgres: Postgres) -> None:
    with psycopg.connect(plain_address(postgres.url("postgres"))) as connection:
        assert connection.execute("SHOW listen_addresses").fetchone() == ("127.0.0.1",)
        assert connection.execute("SHOW unix_socket_directories").fetchone() == ("",)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to hand its files to another user")
def test_root_copies_programs_that_nobody_could_not_execute(
    public_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = find_postgres().parent
    private = tmp_path / "packages" / installed.parent.name / installed.name
    shutil.copytree(installed, private, symlinks=True)
    libraries = installed.parent.with_name(f"{installed.parent.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, tmp_path / "packages" / libraries.name, symlinks=True)
    monkeypatch.setenv("PG_BIN", str(private / "bin"))

    server = open_postgres(public_folder / "postgres", port=free_port(), disposable=True)
    process = start(server.program(), output=subprocess.DEVNULL)

    stop(server.program(), process)
    assert server.installed == private / "bin"
    assert server.binaries.is_relative_to(public_folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to hand its files to another user")
def test_root_keeps_the_data_of_a_private_state_folder_where_nobody_can_reach_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)

    server = open_postgres(tmp_path / "postgres", port=free_port(), disposable=True)

    try:
        assert server.home.parent == Path("/var/tmp")
        assert (tmp_path / "postgres" / "MOVED").read_text().strip() == str(server.home)
        assert open_postgres(tmp_path / "postgres", port=free_port()).home == server.home
    finally:
        shutil.rmtree(server.home)


def test_data_of_another_major_version_is_refused_with_the_versions(public_folder: Path) -> None:
    data = public_folder / "postgres" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("9\n")

    with pytest.raises(MissingBinary, match="of major version 9"):
        open_postgres(public_folder / "postgres", port=free_port())
