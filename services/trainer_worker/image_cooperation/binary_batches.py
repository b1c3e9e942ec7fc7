"""CIFAR-10's binary batches: records of one label byte and 3,072 pixel bytes, plane by plane."""

from pathlib import Path
from typing import Final

import numpy as np

from services.shared.errors import InvalidDataset
from services.shared.picture_files import RECORD_BYTES
from services.trainer_worker.image_cooperation.images import CIFAR10_CLASSES, MAX_BYTES, ImageSet

_SIDE: Final = 32


def read_binary_batch(path: Path, *, name: str) -> ImageSet:
    """Read one batch. Raises InvalidDataset when it is not whole records or has a label beyond 9."""
    num_bytes = path.stat().st_size
    if num_bytes == 0 or num_bytes % RECORD_BYTES or num_bytes > MAX_BYTES:
        raise InvalidDataset(f"{name} has {num_bytes} bytes: not whole records of {RECORD_BYTES}, as CIFAR-10's are.")
    records_NB = np.fromfile(path, dtype=np.uint8).reshape(-1, RECORD_BYTES)
    labels_N = records_NB[:, 0].astype(np.int64)
    if labels_N.max() >= len(CIFAR10_CLASSES):
        row = int(labels_N.argmax()) + 1
        raise InvalidDataset(f"{name}, record {row}: label {labels_N.max()}; CIFAR-10 has 0 to 9.")
    pixels_NHWC = records_NB[:, 1:].reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    return ImageSet(np.ascontiguousarray(pixels_NHWC), labels_N)
