"""Batches that are answered, kept in the job's folder: whole or not at all, so that none is answered twice."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from services.trainer_worker.tracing.generation import RecordedSequence
from services.trainer_worker.tracing.recording import Choices


class KeptBatches:
    """Files `batch-NNNNN.npz`; sequences one after another in each array."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def has(self, number: int) -> bool:
        """Whether this batch is answered."""
        return self._file(number).exists()

    def keep(self, number: int, sequences: Sequence[RecordedSequence]) -> None:
        """Batches of a trace all have the same layers."""
        arrays: dict[str, Any] = {
            "token_ids": np.concatenate([one.token_ids_T for one in sequences]),
            "num_tokens": np.array([len(one.token_ids_T) for one in sequences]),
            "num_prompt_tokens": np.array([one.num_prompt_tokens for one in sequences]),
        }
        for layer in sequences[0].layers:
            arrays[f"experts-{layer}"] = np.concatenate([one.layers[layer].experts for one in sequences])
            arrays[f"weights-{layer}"] = np.concatenate([one.layers[layer].weights for one in sequences])
        half_written = self._file(number).with_suffix(".partial")
        with half_written.open("wb") as file:
            np.savez(file, **arrays)
        half_written.rename(self._file(number))

    def read(self, number: int) -> list[RecordedSequence]:
        """What was kept of a batch."""
        with np.load(self._file(number)) as kept:
            ends = np.cumsum(kept["num_tokens"])[:-1]
            names = [name.removeprefix("experts-") for name in kept.files if name.startswith("experts-")]
            parts = {
                int(name): list(
                    zip(np.split(kept[f"experts-{name}"], ends), np.split(kept[f"weights-{name}"], ends), strict=True)
                )
                for name in names
            }
            return [
                RecordedSequence(
                    token_ids_T=token_ids_T,
                    num_prompt_tokens=int(num_prompt),
                    layers={layer: Choices(*pairs[place]) for layer, pairs in parts.items()},
                )
                for place, (token_ids_T, num_prompt) in enumerate(
                    zip(np.split(kept["token_ids"], ends), kept["num_prompt_tokens"], strict=True)
                )
            ]

    def _file(self, number: int) -> Path:
        return self._folder / f"batch-{number:05}.npz"
