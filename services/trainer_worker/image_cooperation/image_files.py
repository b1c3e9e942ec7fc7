"""Files of pictures in any of the layouts that CIFAR-10 comes in, told apart by their first bytes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from services.shared.errors import InvalidDataset, NotFound
from services.shared.picture_files import PARQUET, PICKLE
from services.trainer_worker.image_cooperation.binary_batches import read_binary_batch
from services.trainer_worker.image_cooperation.images import ImageData, ImageSet
from services.trainer_worker.image_cooperation.parquet_images import read_parquet
from services.trainer_worker.image_cooperation.python_batches import read_python_batch

_LAYOUTS: Final = (
    ("data_batch_[0-9]", "test_batch"),
    ("data_batch_[0-9].bin", "test_batch.bin"),
    ("train-*.parquet", "test-*.parquet"),
)


def read_image_files(files: Sequence[tuple[str, Path]]) -> ImageSet:
    """All pictures of the named files, in their order. Raises InvalidDataset naming the file that is at fault."""
    whole = read_image_file(*files[0])
    for name, path in files[1:]:
        whole = whole.joined(read_image_file(name, path))
    return whole


def read_image_file(name: str, path: Path) -> ImageSet:
    """The pictures of one file."""
    with path.open("rb") as file:
        start = file.read(len(PARQUET))
    if start == PARQUET:
        return read_parquet(path, name=name)
    if start[: len(PICKLE)] == PICKLE:
        return read_python_batch(path, name=name)
    return read_binary_batch(path, name=name)


def image_folder(folder: Path) -> ImageData:
    """CIFAR-10 in a folder, or one level below it, in any layout. Raises NotFound saying what it looks for."""
    for place in (folder, *sorted(path for path in folder.glob("*") if path.is_dir())):
        for train_pattern, test_pattern in _LAYOUTS:
            train, test = sorted(place.glob(train_pattern)), sorted(place.glob(test_pattern))
            if train and test:
                return ImageData(_of(train), _of(test), folder.name)
    wanted = "; ".join(f"{train} and {test}" for train, test in _LAYOUTS)
    raise NotFound(f"No pictures in {folder.name!r}: it needs {wanted}, in it or one folder below.", param="data")


def _of(paths: Sequence[Path]) -> ImageSet:
    try:
        return read_image_files([(path.name, path) for path in paths])
    except OSError as error:
        raise InvalidDataset(f"{error.filename} cannot be read: {error.strerror}.") from error
