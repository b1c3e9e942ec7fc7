"""Ports for servers that may be restarted."""

import socket

from services.local_stack.ports import LOOPBACK, free_port, is_free, preferred_port


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
        assert preferred_port(port) != port
    assert is_free(port)


def test_a_port_that_is_promised_to_another_program_is_not_given_twice() -> None:
    port = free_port()

    assert preferred_port(port) == port
    assert preferred_port(port, taken=(port,)) != port
