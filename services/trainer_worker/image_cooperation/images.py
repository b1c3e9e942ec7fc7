"""Labelled pictures in memory, checked once."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.shared.errors import InvalidDataset

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

MAX_IMAGES = 1_000_000
MAX_SIDE = 256
MAX_CLASSES = 1000
MAX_BYTES = 2 * 1024**3
"""Of all pictures of a set together: they are held in memory."""


@dataclass(frozen=True)
class ImageSet:
    """`pixels_NHWC` in 0..255 and `labels_N` in 0..num_classes-1."""

    pixels_NHWC: Pixels
    labels_N: Labels

    def __post_init__(self) -> None:
        """Raises InvalidDataset for what is not a set of labelled pictures."""
        if self.pixels_NHWC.ndim != 4 or self.pixels_NHWC.dtype != np.uint8:
            raise InvalidDataset(f"Pictures must be bytes [N, H, W, C], not {self.pixels_NHWC.shape}.")
        if not len(self.pixels_NHWC) or len(self.pixels_NHWC) != len(self.labels_N):
            raise InvalidDataset(f"There are {len(self.pixels_NHWC)} pictures and {len(self.labels_N)} labels.")
        if self.labels_N.min() < 0 or self.labels_N.max() >= MAX_CLASSES:
            raise InvalidDataset(f"Labels must be 0 to {MAX_CLASSES - 1}, not {self.labels_N.min()}.")

    def __len__(self) -> int:
        return len(self.labels_N)

    def joined(self, other: "ImageSet") -> "ImageSet":
        """Both, this one first. Raises InvalidDataset when the pictures differ in shape."""
        if self.pixels_NHWC.shape[1:] != other.pixels_NHWC.shape[1:]:
            mine, others = self.pixels_NHWC.shape[1:], other.pixels_NHWC.shape[1:]
            raise InvalidDataset(f"All pictures must have one shape: some are {mine}, some {others}.")
        return ImageSet(
            np.concatenate([self.pixels_NHWC, other.pixels_NHWC]), np.concatenate([self.labels_N, other.labels_N])
        )


@dataclass(frozen=True)
class ImageData:
    """A training set and a test set of the same shape of picture, and where they are from, in words."""

    train: ImageSet
    test: ImageSet
    origin: str

    def __post_init__(self) -> None:
        """Raises InvalidDataset when the two sets do not fit each other."""
        if self.train.pixels_NHWC.shape[1:] != self.test.pixels_NHWC.shape[1:]:
            raise InvalidDataset("Training and test pictures differ in shape.")
        if self.test.labels_N.max() >= self.num_classes:
            raise InvalidDataset(f"The test set has a class {self.test.labels_N.max()} that training never shows.")

    @property
    def num_classes(self) -> int:
        """Classes of the training set, counted from 0 to the largest label."""
        return int(self.train.labels_N.max()) + 1

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        height, width, channels = self.train.pixels_NHWC.shape[1:]
        return height, width, channels
