"""Ports for servers that may be restarted."""

import socket
import subprocess
import sys

import pytest

from services.local_stack.errors import PortTaken
from services.local_stack.ports import LOOPBACK, PortClaims, free_port, is_free
from tests.conftest import PROJECT_ROOT


def test_a_free_port_is_none_that_the_kernel_gives_to_somebody_else() -> None:
    ports = {free_port() for _ in range(50)}

    assert len(ports) > 40, "drawn, not counted up: two stacks that start together want different ones"
    assert all(20_000 <= port < 32_768 for port in ports)


def test_a_taken_port_is_not_free_and_not_preferred() -> None:
    with socket.socket() as server:
        server.bind((LOOPBACK, 0))
        server.listen()
        port = server.getsockname()[1]

        assert not is_free(port)
        assert PortClaims().preferred(port) != port
        with pytest.raises(PortTaken, match=str(port)):
            PortClaims().demanded(port)
    assert is_free(port)


def test_a_port_is_given_once_by_one_stack() -> None:
    claims = PortClaims()
    port = claims.preferred(0)

    assert claims.preferred(port) != port


@pytest.mark.skipif(sys.platform != "linux", reason="claims are kept in Linux's abstract socket namespace")
def test_what_one_process_claims_no_other_gets_until_it_is_gone() -> None:
    claim = "from services.local_stack.ports import PortClaims; c = PortClaims(); print(c.preferred(0), flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", f"{claim}; input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PROJECT_ROOT
    ) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())

        assert is_free(port), "nobody listens there yet"
        assert PortClaims().preferred(port) != port
        with pytest.raises(PortTaken):
            PortClaims().demanded(port)
        other.kill()

    assert PortClaims().demanded(port) == port
