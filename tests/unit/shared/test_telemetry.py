"""Logs: one chain for everybody's lines, with the request id and without secrets."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from services.shared.config import TelemetrySettings
from services.shared.telemetry import bound, configure_logging, get_logger


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


class TestLogs:
    def test_our_lines_and_libraries_lines_carry_the_service_and_the_request_id(self, tmp_path: Path) -> None:
        file = tmp_path / "logs" / "router.log"
        configure_logging(TelemetrySettings(format="json", file=file), service="router")

        with bound(request_id="req-1"):
            get_logger("ours").info("released", number=3)
            logging.getLogger("uvicorn.error").warning("port %d taken", 80)

        ours, library = lines(file)
        assert (ours["event"], ours["number"], ours["level"]) == ("released", 3, "info")
        assert library["event"] == "port 80 taken"
        assert {(line["request_id"], line["service"]) for line in (ours, library)} == {("req-1", "router")}

    def test_the_level_holds_for_everybody(self, tmp_path: Path) -> None:
        file = tmp_path / "x.log"
        configure_logging(TelemetrySettings(level="WARNING", format="json", file=file), service="router")

        get_logger("ours").info("not this")
        logging.getLogger("library").info("nor this")
        get_logger("ours").warning("this")

        assert [line["event"] for line in lines(file)] == ["this"]

    def test_secrets_never_reach_a_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "x.log"
        configure_logging(TelemetrySettings(format="json", file=file), service="router")

        get_logger("ours").info("connecting", url="postgresql://amoe:hunter2@db/amoe", api_key="hunter2")
        get_logger("ours").info("sent", headers={"Authorization": "Bearer hunter2", "accept": "text"})
        logging.getLogger("library").info("to redis://:hunter2@cache with Bearer hunter2")
        try:
            raise ValueError("postgresql://amoe:hunter2@db/amoe is down")
        except ValueError:
            get_logger("ours").exception("failed")

        assert "hunter2" not in file.read_text() + capsys.readouterr().err
        assert "db/amoe" in file.read_text()

    def test_the_file_is_rotated(self, tmp_path: Path) -> None:
        file = tmp_path / "x.log"
        configure_logging(TelemetrySettings(format="json", file=file, max_bytes=1024, backups=2), service="router")

        for number in range(40):
            get_logger("ours").info("line", number=number)

        assert sorted(path.name for path in tmp_path.iterdir()) == ["x.log", "x.log.1", "x.log.2"]

    def test_configuring_again_does_not_double_the_lines(self, tmp_path: Path) -> None:
        file = tmp_path / "x.log"
        for _ in range(2):
            configure_logging(TelemetrySettings(format="human", file=file), service="router")

        get_logger("ours").info("once")

        assert len(lines(file)) == 1
