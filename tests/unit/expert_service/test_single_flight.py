"""One computation for all who ask at once."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.expert_service.single_flight import SingleFlight


@pytest.fixture(name="flights")
def two_threads() -> Iterator[SingleFlight[str, int]]:
    with ThreadPoolExecutor(2) as executor:
        yield SingleFlight(executor)


class TestSingleFlight:
    def test_hands_a_failure_to_everyone_and_forgets_it(self, flights: SingleFlight[str, int]) -> None:
        with pytest.raises(ZeroDivisionError):
            flights.start("a", lambda: 1 // 0).result()
        assert flights.start("a", lambda: 7).result() == 7

    def test_computes_one_key_once_at_a_time_and_others_meanwhile(self, flights: SingleFlight[str, int]) -> None:
        gate = threading.Event()
        first = flights.start("a", lambda: gate.wait(60) and 1)
        assert flights.start("a", lambda: 2) is first
        assert flights.start("b", lambda: 3).result(timeout=60) == 3
        gate.set()
        assert first.result(timeout=60) == 1

    def test_remembers_nothing_of_many_keys(self, flights: SingleFlight[str, int]) -> None:
        for key in range(1000):
            flights.start(str(key), lambda: 0).result()
        flights._executor.shutdown()
        assert not flights._flights
