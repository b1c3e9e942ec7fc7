"""TCP ports on the loopback address."""

import random
import socket
import sys
import weakref
from collections.abc import Mapping

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


class PortClaims:
    """Ports that one stack has chosen, kept from other stacks as long as this object lives.

    A port is free until its server listens, and again while that server is down: two stacks that start together would
    choose the same, and one would move in where a part of the other is about to come back. A name in Linux's abstract
    socket namespace stands for each port; it is gone with the process. Elsewhere nothing is kept from other stacks.
    """

    def __init__(self) -> None:
        self._held: dict[int, socket.socket] = {}
        weakref.finalize(self, _close, self._held)

    def preferred(self, preferred: int, *, host: str = LOOPBACK) -> int:
        """`preferred` when it is free and nobody's, otherwise some port that is."""
        if preferred and self._claim(preferred, host=host):
            return preferred
        while not self._claim(port := free_port(), host=host):
            pass
        return port

    def demanded(self, port: int, *, host: str = LOOPBACK) -> int:
        """`port`, or a free one for 0. Raises PortTaken when another program listens on it or is about to."""
        if port == 0:
            return self.preferred(0, host=host)
        if not self._claim(port, host=host):
            raise PortTaken(f"Port {port} is in use by another program. Choose another one with --port.")
        return port

    def _claim(self, port: int, *, host: str) -> bool:
        if port in self._held or not is_free(port, host=host):
            return False
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if sys.platform == "linux":
                claim.bind(f"\0adaptive-moe/port/{port}")
        except OSError:
            claim.close()
            return False
        self._held[port] = claim
        return True


def _close(held: Mapping[int, socket.socket]) -> None:
    for claim in held.values():
        claim.close()
