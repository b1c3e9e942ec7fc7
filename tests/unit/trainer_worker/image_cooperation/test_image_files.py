"""Pictures come out the same from every layout, and files that hold none say so."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.shared.errors import InvalidDataset, NotFound
from services.shared.picture_files import num_pictures
from services.shared.schemas.image_cooperation import DigitsImages
from services.trainer_worker.image_cooperation.digits import digits_images
from services.trainer_worker.image_cooperation.image_files import image_folder, read_image_file, read_image_files
from services.trainer_worker.image_cooperation.images import ImageData, ImageSet
from tests.unit.trainer_worker.image_cooperation.pictures import (
    binary_batch,
    made_up,
    png,
    python_batch,
    write_parquet,
)

TRAIN, MORE, TEST = made_up(11), made_up(9, seed=5), made_up(6, seed=1)


def python_folder(folder: Path) -> None:
    """As CIFAR-10's archive for Python unpacks."""
    folder = folder / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(python_batch(TRAIN))
    (folder / "data_batch_2").write_bytes(python_batch(MORE))
    (folder / "test_batch").write_bytes(python_batch(TEST))
    (folder / "batches.meta").write_bytes(b"not read")


def binary_folder(folder: Path) -> None:
    """As CIFAR-10's archive for C programs unpacks."""
    (folder / "data_batch_1.bin").write_bytes(binary_batch(TRAIN))
    (folder / "data_batch_2.bin").write_bytes(binary_batch(MORE))
    (folder / "test_batch.bin").write_bytes(binary_batch(TEST))


def parquet_folder(folder: Path) -> None:
    """As the hub's files lie."""
    write_parquet(TRAIN, folder / "train-00000-of-00002.parquet")
    write_parquet(MORE, folder / "train-00001-of-00002.parquet")
    write_parquet(TEST, folder / "test-00000-of-00001.parquet")


class TestCount:
    @pytest.mark.parametrize("write", [python_folder, binary_folder, parquet_folder])
    def test_is_that_of_the_pictures_in_any_layout(self, tmp_path: Path, write: Callable[[Path], None]) -> None:
        write(tmp_path)

        counts = [
            num_pictures(path) for path in sorted(tmp_path.rglob("*")) if path.is_file() and path.suffix != ".meta"
        ]

        assert sorted(count for count in counts if count) == [6, 9, 11]

    @pytest.mark.parametrize("content", [b"", b"\x80\x02cut", b"PAR1cut", b"short"])
    def test_of_what_holds_none_is_not_known(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "damaged"
        path.write_bytes(content)

        assert num_pictures(path) is None

    def test_of_the_digits_is_what_they_are_trained_on(self) -> None:
        assert DigitsImages.num_train == len(digits_images().train)


class TestFolder:
    @pytest.mark.parametrize("write", [python_folder, binary_folder, parquet_folder])
    def test_in_any_layout_holds_the_same_pictures(self, tmp_path: Path, write: object) -> None:
        assert callable(write)
        write(tmp_path)

        data = image_folder(tmp_path)

        whole = TRAIN.joined(MORE)
        assert np.array_equal(data.train.pixels_NHWC, whole.pixels_NHWC)
        assert np.array_equal(data.train.labels_N, whole.labels_N)
        assert np.array_equal(data.test.pixels_NHWC, TEST.pixels_NHWC)
        assert (data.num_classes, data.image_shape) == (10, (32, 32, 3))

    def test_without_pictures_says_what_it_looked_for(self, tmp_path: Path) -> None:
        with pytest.raises(NotFound, match=r"data_batch_.*parquet"):
            image_folder(tmp_path)

    def test_of_the_shared_material_holds_a_thousand_pictures_of_each_class(self, shared_material: Path) -> None:
        file = shared_material / "data" / "cifar10" / "test-00000-of-00001.parquet"

        images = read_image_file(file.name, file)

        assert images.pixels_NHWC.shape == (10_000, 32, 32, 3)
        assert np.bincount(images.labels_N).tolist() == [1000] * 10


class TestFile:
    @pytest.mark.parametrize("size", [0, 1, 3072, 3074, 6147])
    def test_of_no_whole_records_is_refused(self, tmp_path: Path, size: int) -> None:
        (tmp_path / "file").write_bytes(bytes(size))

        with pytest.raises(InvalidDataset, match=f"{size} bytes"):
            read_image_file("batch.bin", tmp_path / "file")

    def test_with_a_label_that_cifar_10_lacks_names_the_record(self, tmp_path: Path) -> None:
        data = bytearray(binary_batch(made_up(3)))
        data[3073] = 10
        (tmp_path / "file").write_bytes(data)

        with pytest.raises(InvalidDataset, match="record 2: label 10"):
            read_image_file("batch.bin", tmp_path / "file")

    @pytest.mark.parametrize(
        ("columns", "told"),
        [
            ({"img": [b"x"], "text": ["a"]}, "columns img, text"),
            ({"img": [b"no picture"], "label": [1]}, "row 1: no readable picture"),
            ({"img": [None], "label": [1]}, "row 1"),
            ({"img": [png(np.zeros((300, 300, 3), np.uint8))], "label": [1]}, "larger than"),
            ({"img": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, "no picture"),
            ({"img": [png(np.zeros((s, 8, 3), np.uint8)) for s in (8, 9)], "label": [1, 2]}, "row 2"),
        ],
    )
    def test_of_parquet_says_which_row_is_at_fault(self, tmp_path: Path, columns: dict[str, list], told: str) -> None:
        pq.write_table(pa.table(columns), tmp_path / "file")

        with pytest.raises(InvalidDataset, match=told):
            read_image_file("train.parquet", tmp_path / "file")

    def test_of_damaged_parquet_is_refused(self, tmp_path: Path) -> None:
        write_parquet(TRAIN, tmp_path / "file")
        whole = (tmp_path / "file").read_bytes()

        for data in (whole[: len(whole) // 2], b"PAR1", whole[:200] + bytes(200) + whole[400:]):
            (tmp_path / "file").write_bytes(data)
            with pytest.raises(InvalidDataset, match=r"train\.parquet"):
                read_image_file("train.parquet", tmp_path / "file")

    def test_of_another_shape_than_the_first_is_refused(self, tmp_path: Path) -> None:
        write_parquet(made_up(2, side=16), tmp_path / "small")
        write_parquet(made_up(2), tmp_path / "large")

        with pytest.raises(InvalidDataset, match="one shape"):
            read_image_files([("small", tmp_path / "small"), ("large", tmp_path / "large")])


class TestDigits:
    def test_are_split_the_same_way_every_time(self) -> None:
        data, again = digits_images(), digits_images()

        assert (len(data.train), len(data.test), data.image_shape) == (1437, 360, (8, 8, 1))
        assert np.array_equal(data.test.pixels_NHWC, again.test.pixels_NHWC)
        assert set(data.test.labels_N.tolist()) == set(range(10))


def test_a_class_that_only_the_test_set_has_is_refused() -> None:
    with pytest.raises(InvalidDataset, match="class 9"):
        ImageData(ImageSet(TRAIN.pixels_NHWC[:5], TRAIN.labels_N[:5]), TRAIN, "made up")
