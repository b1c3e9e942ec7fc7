"""Memory in use, and the warning before it is used up."""

from typing import Any

import pytest
import torch

from services.expert_service import memory
from services.expert_service.memory import MemoryReader, MemoryUse, MemoryWatch, host_budget
from services.shared.config import ExpertServiceSettings
from services.shared.schemas.sequences import ReplicaStatus


class Log:
    """Remembers warnings."""

    def __init__(self) -> None:
        self.warnings: list[dict[str, Any]] = []

    def warning(self, _event: str, **values: Any) -> None:
        self.warnings.append(values)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    recorder = Log()
    monkeypatch.setattr(memory, "log", recorder)
    return recorder


def test_each_crossing_of_nine_tenths_warns_once_and_with_figures(log: Log) -> None:
    kv_cache = {"used": 0}
    watch = MemoryWatch(lambda: [MemoryUse("kv_cache", kv_cache["used"], 1000), MemoryUse("host", 10, 1000)])

    def look_at(*sizes: int) -> None:
        for kv_cache["used"] in sizes:
            watch.look()

    look_at(500, 899, 900, 950, 1000, 890, 905)
    assert [(warning["kind"], warning["bytes"], warning["budget_bytes"]) for warning in log.warnings] == [
        ("kv_cache", 900, 1000)
    ]

    look_at(849, 900)
    assert len(log.warnings) == 2


def test_without_a_budget_nothing_is_near_it(log: Log) -> None:
    MemoryWatch(lambda: [MemoryUse("device", 10**12, 0)]).look()

    assert log.warnings == []


def test_a_replica_knows_what_it_uses_and_may_use() -> None:
    status = ReplicaStatus(
        running=0,
        waiting=0,
        num_slots=4,
        resident=(),
        pinned=(),
        resident_bytes=5000,
        kv_cache_bytes=900,
        kv_cache_limit_bytes=1000,
    )
    reader = MemoryReader(lambda: status, ExpertServiceSettings(slot_bytes=8000), torch.device("cpu"))

    uses = {use.kind: use for use in reader.uses()}

    assert uses["kv_cache"].share == pytest.approx(0.9)
    assert uses["adapters_device"].share == pytest.approx(0.625)
    assert 10**7 < uses["host"].num_bytes < uses["host"].budget_bytes == host_budget()
    assert "device" not in uses, "a CPU replica has no device memory of its own"
