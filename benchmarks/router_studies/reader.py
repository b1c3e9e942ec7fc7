"""The experts side by side, reading windows under given gates; what was read once is kept on disk."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from services.shared.modeling.base_model import LoadedBase
from services.trainer_worker.evaluation.systems import Readings, read
from services.trainer_worker.evaluation.windows import Windows
from services.trainer_worker.training.expert_ensemble import ExpertEnsemble

_WEIGHTS_FILE = "adapter_model.safetensors"


class Reader:
    """Knows the experts by name; `folder` keeps losses under a digest of adapters, tokens and gates."""

    def __init__(self, ensemble: ExpertEnsemble, adapters_digest: bytes, folder: Path) -> None:
        self._ensemble = ensemble
        self._adapters_digest = adapters_digest
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    @contextmanager
    def load(cls, base: LoadedBase, experts: Sequence[tuple[str, Path]], folder: Path) -> "Iterator[Reader]":
        """With these experts in the slots of one mixture."""
        digest = hashlib.sha256(base.fingerprint.encode())
        for _, adapter_dir in experts:
            digest.update((adapter_dir / _WEIGHTS_FILE).read_bytes())
        with ExpertEnsemble.load(base, experts) as ensemble:
            yield cls(ensemble, digest.digest(), folder)

    def read(self, windows: Windows, weights_BTC: np.ndarray, names: Sequence[str]) -> Readings:
        """Losses under these gates; `names` are the experts of all columns but the last, the base's."""
        weights_BTE = np.zeros((*weights_BTC.shape[:2], len(self._ensemble.experts)), dtype=np.float32)
        for column, name in enumerate(names):
            weights_BTE[..., self._ensemble.experts.index(name)] += weights_BTC[..., column]
        key = hashlib.sha256(self._adapters_digest + windows.digest.encode() + weights_BTE.tobytes()).hexdigest()[:32]
        file = self._folder / f"{key}.npy"
        if not file.exists():
            readings = read(self._ensemble, windows, lambda _: torch.from_numpy(weights_BTE))
            partial = file.with_suffix(".partial")
            with partial.open("wb") as target:
                np.save(target, readings.nats_BT)
            partial.rename(file)
        return Readings(np.load(file), weights_BTE)

    def alone(self, windows: Windows, name: str | None) -> Readings:
        """Losses of one expert, or of the base model, at every token."""
        weights_BTC = np.zeros((*windows.token_ids_BT.shape, 2))
        weights_BTC[..., 0 if name else 1] = 1.0
        return self.read(windows, weights_BTC, [name or self._ensemble.experts[0]])

    def oracle(self, windows: Windows, names: Sequence[str]) -> Readings:
        """Losses when every token is read by its own domain's expert; `names` in the order of the columns."""
        weights_BTC = np.eye(len(names) + 1)[windows.domains_BT.numpy()]
        return self.read(windows, weights_BTC, names)

    def uniform(self, windows: Windows, names: Sequence[str]) -> Readings:
        """Losses when all experts speak alike."""
        weights_BTC = np.full((*windows.token_ids_BT.shape, len(names) + 1), 1.0 / len(names))
        return self.read(windows, weights_BTC, names)
