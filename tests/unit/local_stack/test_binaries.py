"""Where the programs of Postgres and Valkey are looked for, in which order."""

from pathlib import Path

import pytest

from services.local_stack import binaries
from services.local_stack.errors import MissingBinary


def _fake_program(path: Path, answer: str = "postgres (PostgreSQL) 18.6") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{answer}'\n")
    path.chmod(0o755)
    return path


def _fake_postgres(folder: Path, version: str) -> Path:
    for name in ("initdb", "postgres"):
        _fake_program(folder / name, f"{name} (PostgreSQL) {version}")
    return folder


def test_pg_bin_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PG_BIN", str(_fake_postgres(tmp_path, "17.2")))

    assert binaries.find_postgres() == tmp_path


def test_a_wheel_is_used_when_nothing_is_named() -> None:
    assert binaries.find_postgres().parent.name == "pginstall"


def test_existing_data_decide_the_major_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PG_BIN", str(_fake_postgres(tmp_path, "17.2")))

    assert binaries.find_postgres(major=18) != tmp_path


@pytest.mark.parametrize(("version", "major"), [("18.6", 18), ("17beta1", 17), ("16.1 (Debian 16.1-1)", 16)])
def test_the_major_version_is_read_from_the_program(tmp_path: Path, version: str, major: int) -> None:
    assert binaries.postgres_major(_fake_postgres(tmp_path, version)) == major


def test_a_folder_without_postgres_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PG_BIN", str(tmp_path))

    assert binaries.find_postgres() != tmp_path


def test_redis_server_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = _fake_program(tmp_path / "redis-server")
    monkeypatch.setenv("REDIS_SERVER", str(program))

    assert binaries.find_valkey() == program


def test_valkey_on_the_path_is_the_last_resort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = _fake_program(tmp_path / "valkey-server")
    monkeypatch.setattr(binaries, "_package_folder", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert binaries.find_valkey() == program


def test_a_missing_server_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "_package_folder", lambda _: None)
    monkeypatch.setenv("PATH", "")

    with pytest.raises(MissingBinary, match="make setup"):
        binaries.find_valkey()
