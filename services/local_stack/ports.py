"""TCP ports on the loopback address."""

import random
import socket
from collections.abc import Collection

from services.local_stack.errors import PortTaken

LOOPBACK = "127.0.0.1"
_QUIET_PORTS = range(20_000, 32_768)
_TRIES = 64


def is_free(port: int, *, host: str = LOOPBACK) -> bool:
    """True when a server could listen on the port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Some port that is free now; another program may still take it first.

    Below those that kernels hand out to whoever asks for any, so that a server that is restarted finds its own again.
    """
    for quiet in random.sample(_QUIET_PORTS, k=_TRIES):
        if is_free(quiet):
            return quiet
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port


def preferred_port(preferred: int, *, host: str = LOOPBACK, taken: Collection[int] = ()) -> int:
    """`preferred` when it is free and not `taken`, otherwise some free port that is not `taken` either."""
    if preferred and preferred not in taken and is_free(preferred, host=host):
        return preferred
    while (port := free_port()) in taken:
        pass
    return port


def demanded_port(port: int, *, host: str = LOOPBACK) -> int:
    """`port`, or a free one for 0. Raises PortTaken when another program listens on it."""
    if port == 0:
        return free_port()
    if not is_free(port, host=host):
        raise PortTaken(f"Port {port} is in use by another program. Choose another one with --port.")
    return port
