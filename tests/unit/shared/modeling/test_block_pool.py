"""Memory that comes back when the last tensor over it is gone, and not before."""

import gc

import torch

from services.shared.modeling.block_pool import BlockPool


def address(block: torch.Tensor) -> int:
    return block.untyped_storage().data_ptr()


class TestBlockPool:
    def test_memory_is_used_again_once_nobody_looks_at_it(self) -> None:
        pool = BlockPool()
        first = pool.take(1000, torch.float32)
        place = address(first)
        del first
        gc.collect()

        assert address(pool.take(1000, torch.float32)) == place

    def test_a_view_keeps_its_memory_from_others(self) -> None:
        pool = BlockPool()
        first = pool.take(1000, torch.float32).fill_(1.0)
        view = first.view(10, 100)[:5].T
        del first
        gc.collect()

        others = [pool.take(1000, torch.float32).fill_(2.0) for _ in range(5)]

        assert address(view) not in [address(other) for other in others]
        assert bool((view == 1.0).all())

    def test_much_smaller_ones_get_memory_of_their_own(self) -> None:
        pool = BlockPool()
        large = address(pool.take(1_000_000, torch.float32))
        gc.collect()

        small = pool.take(1000, torch.bfloat16)

        assert (small.dtype, small.shape, address(small) != large) == (torch.bfloat16, (1000,), True)

    def test_keeps_a_few_and_no_large_ones(self) -> None:
        pool = BlockPool()
        blocks = [pool.take(size, torch.float32) for size in range(1000, 1020)]
        del blocks
        gc.collect()
        num_small = pool.num_kept
        pool.take(2**25, torch.float32)
        gc.collect()

        assert (num_small, pool.num_kept) == (4, 4)
