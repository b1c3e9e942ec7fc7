"""Where the replicas are: at the addresses of the settings, and behind every address of a name marked `dns+`."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final
from urllib.parse import urlsplit

from services.shared.telemetry import get_logger

log = get_logger(__name__)

DNS_PREFIX: Final = "dns+"
"""`dns+http://expert:8001`: a replica at each address that the name has, as in compose with `--scale expert=N`."""

Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""The IP addresses of a host name; raises OSError when it cannot be looked up."""


async def addresses_of(host: str) -> Sequence[str]:
    """The IPv4 addresses of a name, or its IPv6 addresses where it has no others: a replica must not count twice."""
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    of_family = {family: sorted({str(info[4][0]) for info in found if info[0] == family}) for family in _FAMILIES}
    return next((addresses for addresses in of_family.values() if addresses), [])


class Discovery:
    """Finds the replicas' URLs, in the order of the settings."""

    def __init__(self, urls: Sequence[str], resolve: Resolve = addresses_of) -> None:
        self._resolve = resolve
        self._found: dict[str, tuple[str, ...]] = {url: () if _is_name(url) else (url.rstrip("/"),) for url in urls}

    @property
    def urls(self) -> list[str]:
        """What is known, each once."""
        return list(dict.fromkeys(url for urls in self._found.values() for url in urls))

    async def look_up(self) -> None:
        """Ask for the names' addresses again; a name that cannot be looked up keeps those it had."""
        await asyncio.gather(*(self._look_up(url) for url in self._found if _is_name(url)))

    async def _look_up(self, url: str) -> None:
        parts = urlsplit(url.removeprefix(DNS_PREFIX))
        try:
            addresses = await self._resolve(parts.hostname or "")
        except OSError as error:
            log.debug("replica name not found", url=url, reason=str(error))
            return
        port = f":{parts.port}" if parts.port else ""
        self._found[url] = tuple(f"{parts.scheme}://{_as_host(address)}{port}" for address in addresses)


_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


def _is_name(url: str) -> bool:
    return url.startswith(DNS_PREFIX)


def _as_host(address: str) -> str:
    return f"[{address}]" if ":" in address else address
