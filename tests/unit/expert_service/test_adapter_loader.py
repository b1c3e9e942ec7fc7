"""Storage to host memory: one read for all who ask at once."""

import threading
import time
from pathlib import Path

import pytest
import torch

from services.expert_service import adapter_loader
from services.expert_service.adapter_loader import AdapterLoader
from services.expert_service.host_cache import HostCache
from services.shared.errors import Conflict, InvalidAdapter, NotFound
from services.shared.modeling.adapter_files import read_adapter
from services.shared.modeling.wiring import BaseShapes
from services.shared.schemas.sequences import ExpertRef
from services.shared.storage import Storage
from tests.unit.shared.modeling.tiny_models import save_random_adapter, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


def make_loader(storage: Storage, *, host_bytes: int = 2**20) -> AdapterLoader:
    return AdapterLoader(
        storage,
        BaseShapes.of(tiny_model()),
        dtype=torch.float32,
        max_rank=64,
        base_fingerprint="f" * 64,
        host=HostCache(host_bytes),
    )


@pytest.fixture(name="loader")
def fresh_loader(tmp_path: Path) -> AdapterLoader:
    return make_loader(Storage(tmp_path / "storage"))


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
        threads = [threading.Thread(target=lambda: loaded.append(loader.load(expert.digest))) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len(reads) == 1
        assert len({id(adapter) for adapter in loaded}) == 1
        assert loader.load(expert.digest) is loaded[0]
        assert (len(reads), loader.counts.disk_reads) == (1, 1)

    def test_keeps_in_host_memory_what_nobody_holds(self, loader: AdapterLoader, expert: ExpertRef) -> None:
        loader.load(expert.digest)
        loader.load(expert.digest)
        assert loader.host.digests == (expert.digest,)
        assert (loader.counts.disk_reads, loader.counts.host_hits) == (1, 1)

    def test_without_a_budget_shares_only_what_somebody_holds(self, expert: ExpertRef, tmp_path: Path) -> None:
        loader = make_loader(Storage(tmp_path / "storage"), host_bytes=0)
        held = loader.load(expert.digest)
        assert loader.load(expert.digest) is held
        del held
        loader.load(expert.digest)
        assert loader.host.digests == ()
        assert loader.counts.disk_reads == 2

    def test_says_what_is_wrong_and_tries_again(self, loader: AdapterLoader, expert: ExpertRef, tmp_path: Path) -> None:
        with pytest.raises(NotFound):
            loader.load("0" * 64)
        storage = Storage(tmp_path / "storage")
        weights = storage.artifact(expert.digest) / "adapter_model.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[:-1] + b"x")
        with pytest.raises(Conflict, match="damaged"):
            loader.load(expert.digest)
        weights.write_bytes(whole)
        assert loader.load(expert.digest).report.rank == 4

    def test_refuses_what_the_base_cannot_carry(self, loader: AdapterLoader, tmp_path: Path) -> None:
        storage = Storage(tmp_path / "storage")
        digest = storage.publish(save_random_adapter(tmp_path / "opt", "opt", seed=1))
        with pytest.raises(InvalidAdapter, match="another base model"):
            loader.load(digest)
