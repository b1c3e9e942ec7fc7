"""Who stands where in the KV cache, and that its bound holds."""

import numpy as np
import pytest

from services.expert_service.kv_places import KVPlaces, Place

LAYER_BYTES = (10, 10, 20)
POSITION_BYTES = sum(LAYER_BYTES)


def places(*, limit_positions: int, max_context: int = 64, max_rows: int = 4, first_capacity: int = 8) -> KVPlaces:
    return KVPlaces(
        LAYER_BYTES,
        limit_bytes=limit_positions * POSITION_BYTES,
        max_context=max_context,
        max_rows=max_rows,
        first_capacity=first_capacity,
    )


def taken(kv: KVPlaces, num_positions: int, tap_layer: int | None = None) -> Place:
    place = kv.take(num_positions, tap_layer)
    assert place is not None
    return place


class TestKVPlaces:
    def test_sequences_of_like_length_stand_side_by_side(self) -> None:
        kv = places(limit_positions=1000)
        first, second, long = taken(kv, 3), taken(kv, 8), taken(kv, 9)

        assert (first.slab, first.row, first.capacity) == (second.slab, 0, 8)
        assert second.row == 1
        assert (long.slab != first.slab, long.capacity) == (True, 16)

    def test_a_long_sequence_does_not_make_the_others_long(self) -> None:
        kv = places(limit_positions=1000, max_rows=4)
        for _ in range(3):
            taken(kv, 5)
        taken(kv, 60)

        # Four short rows of 8 + 1, and as many of 64 + 1 as a quarter of the memory holds.
        assert kv.num_bytes == (4 * 9 + 3 * 65) * POSITION_BYTES

    def test_a_slab_has_only_the_rows_that_are_affordable(self) -> None:
        kv = places(limit_positions=3 * 9 + 5)
        assert len({taken(kv, 8).slab for _ in range(3)}) == 3
        assert kv.take(8) is None

    def test_an_empty_slab_is_used_again_and_given_up_for_another_length(self) -> None:
        kv = places(limit_positions=40)
        short = taken(kv, 8)
        kv.give_back(short)
        assert taken(kv, 8) == short
        kv.give_back(short)

        long = taken(kv, 30)

        assert list(kv.slabs()) == [long.slab]
        assert kv.num_bytes <= kv.limit_bytes

    def test_a_free_row_of_a_longer_slab_serves_when_nothing_else_is_left(self) -> None:
        kv = places(limit_positions=16 * 17, max_rows=4)
        for _ in range(15):
            taken(kv, 16)
        assert taken(kv, 3).capacity == 16
        assert kv.take(3) is None

    def test_the_longest_sequence_is_what_fits_alone(self) -> None:
        kv = places(limit_positions=41)
        assert kv.longest() == 40
        assert places(limit_positions=1000).longest() == 64
        assert taken(kv, 40).capacity == 40
        assert kv.take(41) is None

    def test_a_second_stream_counts_and_shortens_what_fits(self) -> None:
        kv = places(limit_positions=30)
        assert kv.longest(tap_layer=2) == 30 * 40 // 60 - 1

        taken(kv, 8, tap_layer=2)

        assert kv.num_bytes == 9 * 60
        assert list(kv.slabs(tap_layer=2)) == list(kv.slabs())
        assert list(kv.slabs(tap_layer=1)) == []

    @pytest.mark.parametrize("seed", range(4))
    def test_the_bound_holds_and_nobody_shares_whatever_comes_and_goes(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        kv = places(limit_positions=300)
        standing: list[Place] = []
        for _ in range(400):
            if standing and generator.random() < 0.45:
                kv.give_back(standing.pop(int(generator.integers(len(standing)))))
            tap_layer = [None, 1, 2][int(generator.integers(3))]
            wanted = int(generator.integers(1, 65))
            place = kv.take(wanted, tap_layer)
            if place is not None:
                assert place.capacity >= wanted
                assert place.slab in set(kv.slabs(tap_layer))
                standing.append(place)
            assert kv.num_bytes <= kv.limit_bytes
            assert len({(place.slab, place.row) for place in standing}) == len(standing)
        for place in standing:
            kv.give_back(place)
        assert taken(kv, kv.longest(2), 2).capacity == kv.longest(2)
