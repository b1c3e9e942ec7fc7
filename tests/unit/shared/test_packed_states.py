"""Hidden states in rows: two bytes a number, close to what was packed."""

import numpy as np

from services.shared.packed_states import pack_states, unpack_states


class TestPackedStates:
    def test_a_vector_comes_back_within_half_precision(self) -> None:
        states_D = np.random.default_rng(0).normal(size=256)

        packed = pack_states(states_D)

        assert len(packed) == 2 * 256
        np.testing.assert_allclose(unpack_states(packed), states_D, rtol=1e-3, atol=1e-6)

    def test_bytes_are_little_endian_everywhere(self) -> None:
        assert pack_states([1.0]) == b"\x00\x3c"

    def test_what_is_too_large_stays_finite(self) -> None:
        assert unpack_states(pack_states([1e9, -1e9])).tolist() == [65504.0, -65504.0]
