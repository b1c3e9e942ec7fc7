"""Storage to host memory: one read for all who ask at once."""

import threading
import time
from pathlib import Path

import pytest
import torch

from services.expert_service import adapter_loader
from services.expert_service.adapter_loader import AdapterLoader, SingleFlight
from services.shared.errors import Conflict, InvalidAdapter, NotFound
from services.shared.modeling.adapter_files import read_adapter
from services.shared.modeling.wiring import BaseShapes
from services.shared.schemas.sequences import ExpertRef
from services.shared.storage import Storage
from tests.unit.shared.modeling.tiny_models import save_random_adapter, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


@pytest.fixture(name="loader")
def fresh_loader(tmp_path: Path) -> AdapterLoader:
    storage = Storage(tmp_path / "storage")
    return AdapterLoader(
        storage, BaseShapes.of(tiny_model()), dtype=torch.float32, max_rank=64, base_fingerprint="f" * 64
    )


@pytest.fixture(name="expert")
def published_expert(tmp_path: Path) -> ExpertRef:
    storage = Storage(tmp_path / "storage")
    return ExpertRef(name="ada", version=1, digest=storage.publish(save_random_adapter(tmp_path / "ada", seed=1)))


class TestAdapterLoader:
    def test_reads_once_for_all_who_ask_at_the_same_time(
        self, loader: AdapterLoader, expert: ExpertRef, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reads = []

        def slow_read(*args: object, **kwargs: object) -> object:
            reads.append(args)
            time.sleep(0.05)
            return read_adapter(*args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(adapter_loader, "read_adapter", slow_read)
        loaded = []
        threads = [threading.Thread(target=lambda: loaded.append(loader.load(expert))) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len(reads) == 1
        assert len({id(planned.adapter) for planned in loaded}) == 1
        assert loader.load(expert).adapter is loaded[0].adapter
        assert len(reads) == 1

    def test_forgets_what_nobody_holds(self, loader: AdapterLoader, expert: ExpertRef) -> None:
        loader.load(expert)
        assert not loader._in_memory

    def test_says_what_is_wrong_and_tries_again(self, loader: AdapterLoader, expert: ExpertRef, tmp_path: Path) -> None:
        with pytest.raises(NotFound):
            loader.load(ExpertRef(name="x", version=1, digest="0" * 64))
        storage = Storage(tmp_path / "storage")
        weights = storage.artifact(expert.digest) / "adapter_model.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[:-1] + b"x")
        with pytest.raises(Conflict, match="damaged"):
            loader.load(expert)
        weights.write_bytes(whole)
        assert loader.load(expert).name == "ada"

    def test_refuses_what_the_base_cannot_carry(self, loader: AdapterLoader, tmp_path: Path) -> None:
        storage = Storage(tmp_path / "storage")
        digest = storage.publish(save_random_adapter(tmp_path / "opt", "opt", seed=1))
        with pytest.raises(InvalidAdapter, match="another base model"):
            loader.load_digest(digest)


class TestSingleFlight:
    def test_hands_a_failure_to_everyone_and_forgets_it(self) -> None:
        flights: SingleFlight[str, int] = SingleFlight()
        with pytest.raises(ZeroDivisionError):
            flights.run("a", lambda: 1 // 0)
        assert flights.run("a", lambda: 7) == 7
