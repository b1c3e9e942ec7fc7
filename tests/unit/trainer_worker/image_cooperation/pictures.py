"""Small made-up pictures, and the files that people have them in."""

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from services.trainer_worker.image_cooperation.images import ImageData, ImageSet


def made_up(num_images: int, *, side: int = 32, channels: int = 3, seed: int = 0, num_classes: int = 10) -> ImageSet:
    """Noise with a bright bar whose place is the class: something can be learned from it."""
    rng = np.random.default_rng(seed)
    labels_N = np.arange(num_images, dtype=np.int64) % num_classes
    pixels_NHWC = rng.integers(0, 120, size=(num_images, side, side, channels), dtype=np.uint8)
    for row, label in enumerate(labels_N):
        at = int(label) * side // num_classes
        pixels_NHWC[row, at : at + max(side // num_classes, 1)] += 120
    return ImageSet(pixels_NHWC, labels_N)


def made_up_data(num_train: int = 60, num_test: int = 30, *, side: int = 8, channels: int = 1) -> ImageData:
    """A training and a test set of one kind."""
    train = made_up(num_train, side=side, channels=channels)
    return ImageData(train, made_up(num_test, side=side, channels=channels, seed=1), "made up")


def python_batch(images: ImageSet, *, protocol: int = 2, as_python_2: bool = True) -> bytes:
    """A CIFAR batch as a pickle; Python 2's has keys of bytes."""
    planes_NB = images.pixels_NHWC.transpose(0, 3, 1, 2).reshape(len(images), -1)
    batch: dict[Any, Any] = {
        "batch_label": "training batch 1 of 5",
        "labels": images.labels_N.tolist(),
        "data": planes_NB,
        "filenames": [f"picture_{row}.png" for row in range(len(images))],
    }
    if as_python_2:
        batch = {key.encode(): value for key, value in batch.items()}
    return pickle.dumps(batch, protocol=protocol)


def binary_batch(images: ImageSet) -> bytes:
    """A CIFAR-10 batch as records of a label and its planes."""
    planes_NB = images.pixels_NHWC.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([images.labels_N.astype(np.uint8)[:, None], planes_NB], axis=1).tobytes()


def png(pixels_HWC: np.ndarray) -> bytes:
    """A picture, encoded without loss."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels_HWC).save(file, format="PNG")
    return file.getvalue()


def write_parquet(images: ImageSet, path: Path) -> None:
    """The hub's layout: `img` of {bytes, path}, and `label`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pictures = [{"bytes": png(pixels_HWC), "path": None} for pixels_HWC in images.pixels_NHWC]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"img": pa.array(pictures, kind), "label": pa.array(images.labels_N)})
    features = {"img": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}
    described = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(described), path)
