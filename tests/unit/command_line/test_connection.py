"""Where commands look for a router service."""

from pathlib import Path

import pytest

from services.command_line import connection
from services.command_line.errors import Unreachable
from services.local_stack.state_folder import Endpoints, StateFolder


def test_the_stack_that_runs_here_is_spoken_to_and_none_after_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "DEFAULT_STATE", tmp_path)
    state = StateFolder(tmp_path)
    with state.held():
        state.write_endpoints(Endpoints(1, "http://127.0.0.1:4321", (), "", "", "", ""))
        assert connection.local_url() == "http://127.0.0.1:4321"

    with pytest.raises(Unreachable, match="adaptive-moe up"):
        connection.local_url()
