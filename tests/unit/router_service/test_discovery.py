"""Where replicas are looked for."""

import pytest
from pydantic import ValidationError

from services.router_service.discovery import Discovery, addresses_of
from services.shared.config import RouterServiceSettings


class Names:
    """A name server for one name."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.is_down = False

    async def __call__(self, host: str) -> tuple[str, ...]:
        assert host == "expert"
        if self.is_down:
            raise OSError("no answer")
        return self.addresses


async def test_an_ordinary_address_is_one_replica_and_nobody_is_asked() -> None:
    discovery = Discovery(["http://one:8001/", "http://two:8001"], Names())

    await discovery.look_up()

    assert discovery.urls == ["http://one:8001", "http://two:8001"]


async def test_a_name_is_a_replica_at_each_of_its_addresses() -> None:
    names = Names("10.0.0.1", "10.0.0.2", "fd00::3")
    discovery = Discovery(["dns+http://expert:8001"], names)

    assert discovery.urls == []
    await discovery.look_up()
    assert discovery.urls == ["http://10.0.0.1:8001", "http://10.0.0.2:8001", "http://[fd00::3]:8001"]

    names.addresses = ("10.0.0.2", "10.0.0.9")
    await discovery.look_up()
    assert discovery.urls == ["http://10.0.0.2:8001", "http://10.0.0.9:8001"]


async def test_a_name_server_that_is_down_takes_no_replica_away() -> None:
    names = Names("10.0.0.1")
    discovery = Discovery(["dns+http://expert:8001"], names)
    await discovery.look_up()

    names.is_down = True
    await discovery.look_up()

    assert discovery.urls == ["http://10.0.0.1:8001"]


async def test_the_loopback_name_is_one_address_and_not_one_of_each_family() -> None:
    addresses = await addresses_of("localhost")

    assert len(addresses) == len(set(addresses)) >= 1
    assert len({":" in address for address in addresses}) == 1


async def test_a_name_that_nobody_has_is_an_os_error() -> None:
    with pytest.raises(OSError, match=r"."):
        await addresses_of("no-such-host.invalid")


@pytest.mark.parametrize("url", ["expert:8001", "dns+https://expert", "ftp://expert", "http://", "http://a/path"])
def test_an_address_that_cannot_work_stops_the_start(url: str) -> None:
    with pytest.raises(ValidationError):
        RouterServiceSettings(expert_urls=(url,))
