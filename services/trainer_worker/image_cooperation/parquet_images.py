"""Pictures in Parquet as the hub lays them out: a column of {bytes, path} and one of class labels."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from services.shared.errors import InvalidDataset
from services.trainer_worker.image_cooperation.images import MAX_BYTES, MAX_IMAGES, MAX_SIDE, ImageSet

_IMAGE_COLUMNS: Final = ("img", "image")
_LABEL_COLUMNS: Final = ("label", "labels", "fine_label")
_ROWS_AT_ONCE: Final = 1024


def read_parquet(path: Path, *, name: str) -> ImageSet:
    """Read a Parquet file. Raises InvalidDataset naming the file and the row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        if file.metadata.num_rows > MAX_IMAGES:
            raise InvalidDataset(f"{name} holds more than {MAX_IMAGES} pictures.")
        image, label = image_columns(file.schema_arrow.names, name=name)
        decoder = PictureDecoder(name)
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[image, label]):
            for row in batch.to_pylist():
                decoder.add(row[image], row[label])
    except (pa.ArrowException, OSError) as error:
        raise InvalidDataset(f"{name} is no readable Parquet file: {error}") from error
    return decoder.finish()


def image_columns(names: Sequence[str], *, name: str) -> tuple[str, str]:
    """The picture's and the label's column. Raises InvalidDataset when there are none."""
    image = next((column for column in _IMAGE_COLUMNS if column in names), None)
    label = next((column for column in _LABEL_COLUMNS if column in names), None)
    if image is None or label is None:
        raise InvalidDataset(
            f"{name} has the columns {', '.join(names)}: it needs one of {', '.join(_IMAGE_COLUMNS)} for pictures and "
            f"one of {', '.join(_LABEL_COLUMNS)} for classes."
        )
    return image, label


class PictureDecoder:
    """Decodes encoded pictures (PNG, JPEG) one after the other into one set."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pixels: list[np.ndarray] = []
        self._labels: list[int] = []
        self._num_bytes = 0

    def add(self, picture: Mapping[str, Any] | bytes | None, label: int | None) -> None:
        """Decode one. Raises InvalidDataset with its row."""
        encoded = picture.get("bytes") if isinstance(picture, Mapping) else picture
        row = len(self._labels) + 1
        if not isinstance(encoded, bytes) or not isinstance(label, int):
            raise InvalidDataset(f"{self._name}, row {row}: a picture's bytes or its label is missing.")
        pixels_HWC = self._decode(encoded, row)
        if self._pixels and pixels_HWC.shape != self._pixels[0].shape:
            raise InvalidDataset(f"{self._name}, row {row}: {pixels_HWC.shape}, others are {self._pixels[0].shape}.")
        self._num_bytes += pixels_HWC.nbytes
        if self._num_bytes > MAX_BYTES or row > MAX_IMAGES:
            raise InvalidDataset(f"{self._name}: more than {MAX_BYTES // 1024**2} MiB or {MAX_IMAGES} pictures.")
        self._pixels.append(pixels_HWC)
        self._labels.append(label)

    def finish(self) -> ImageSet:
        """The set of all that was added."""
        if not self._pixels:
            raise InvalidDataset(f"{self._name} holds no picture.")
        return ImageSet(np.stack(self._pixels), np.array(self._labels, dtype=np.int64))

    def _decode(self, encoded: bytes, row: int) -> np.ndarray:
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG", "WEBP", "BMP")) as image:
                # The header's size first: a few bytes may claim a picture that fills the memory.
                if max(image.size) > MAX_SIDE:
                    raise InvalidDataset(f"{self._name}, row {row}: larger than {MAX_SIDE}x{MAX_SIDE}.")
                return np.asarray(image.convert("RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise InvalidDataset(f"{self._name}, row {row}: no readable picture ({error}).") from error
