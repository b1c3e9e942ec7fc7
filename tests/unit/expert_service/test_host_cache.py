"""The middle tier: least recently used goes first, what is in use is never read twice."""

import torch

from services.expert_service.host_cache import HostCache
from services.shared.modeling.adapter_files import Adapter, LayerWeights
from services.shared.schemas.sequences import AdapterReport

REPORT = AdapterReport(
    rank=4, num_parameters=32, num_bytes=128, target_modules=("q",), lowest_layer=0, base_fingerprint=""
)
SIZE = 128


def adapter() -> Adapter:
    """128 bytes."""
    return Adapter({"q": LayerWeights(torch.zeros(4, 4), torch.zeros(4, 4))}, REPORT)


class TestHostCache:
    def test_gives_up_the_least_recently_used(self) -> None:
        cache = HostCache(3 * SIZE)
        for name in "abc":
            cache.keep(name, adapter())
        assert cache.get("a") is not None
        cache.keep("d", adapter())

        assert cache.digests == ("d", "a", "c")
        assert cache.get("b") is None
        assert cache.num_bytes == 3 * SIZE

    def test_still_finds_what_somebody_holds_and_keeps_it_again(self) -> None:
        cache = HostCache(SIZE)
        held = adapter()
        cache.keep("a", held)
        cache.keep("b", adapter())
        assert cache.digests == ("b",)

        assert cache.get("a") is held
        assert cache.digests == ("a",)

    def test_counts_what_is_kept_twice_once(self) -> None:
        cache = HostCache(2 * SIZE)
        held = adapter()
        for _ in range(3):
            cache.keep("a", held)
        assert (cache.num_bytes, cache.digests) == (SIZE, ("a",))

    def test_does_not_keep_what_is_larger_than_the_budget(self) -> None:
        cache = HostCache(SIZE - 1)
        cache.keep("a", adapter())
        assert (cache.get("a"), cache.num_bytes, cache.digests) == (None, 0, ())
