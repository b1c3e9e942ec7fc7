"""CIFAR's pickles are read as data; those that are more than data are refused and do nothing."""

import os
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.shared.errors import InvalidDataset
from services.trainer_worker.image_cooperation.python_batches import load_plain, read_python_batch
from tests.unit.trainer_worker.image_cooperation.pictures import made_up, python_batch


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def refused(path: Path, data: bytes) -> InvalidDataset:
    """The error of reading `data`."""
    path.write_bytes(data)
    with pytest.raises(InvalidDataset) as caught:
        read_python_batch(path, name="data_batch_1")
    return caught.value


class TestBatch:
    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    @pytest.mark.parametrize("as_python_2", [True, False])
    def test_comes_back_as_it_was_written(self, tmp_path: Path, protocol: int, as_python_2: bool) -> None:
        images = made_up(7)
        (tmp_path / "batch").write_bytes(python_batch(images, protocol=protocol, as_python_2=as_python_2))

        read = read_python_batch(tmp_path / "batch", name="batch")

        assert np.array_equal(read.pixels_NHWC, images.pixels_NHWC)
        assert np.array_equal(read.labels_N, images.labels_N)

    def test_of_python_2_is_read_opcode_by_opcode(self, tmp_path: Path) -> None:
        """What Python 2's cPickle wrote: arrays as byte strings under numpy.core, keys as byte strings."""
        data = b"".join(
            [
                b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04",
                b"K\x00\x85U\x01b\x87Rq\x05(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07",
                b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x00\x0c\x00\x00"
                + bytes(range(256)) * 12,
                b"tbU\x06labelsq\x08]q\x09K\x06au.",
            ]
        )
        (tmp_path / "batch").write_bytes(data)

        read = read_python_batch(tmp_path / "batch", name="batch")

        assert read.labels_N.tolist() == [6]
        assert read.pixels_NHWC[0, 0, :4, 0].tolist() == [0, 1, 2, 3]

    @pytest.mark.parametrize(
        ("batch", "told"),
        [
            ([1, 2], "no dictionary"),
            ({"data": [1], "labels": [1]}, "'data'"),
            ({"data": np.zeros((2, 3072), np.float32), "labels": [1, 2]}, "'data'"),
            ({"data": np.zeros((2, 3072), np.uint8)}, "'labels'"),
            ({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, "1 labels"),
            ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, -1]}, "Labels"),
            ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, "cat"]}, "no readable CIFAR batch"),
        ],
    )
    def test_that_is_something_else_is_refused_with_what_it_lacks(self, tmp_path: Path, batch: Any, told: str) -> None:
        assert told in refused(tmp_path / "batch", pickle.dumps(batch, protocol=2)).message


class TestHostilePickle:
    @pytest.mark.parametrize(
        "call",
        [
            Calls(os.system, "touch {marker}"),
            Calls(exec, "open({marker!r}, 'w')"),
            Calls(eval, "open({marker!r}, 'w')"),
            Calls(getattr, os, "system"),
            Calls(np.load, "{marker}"),
            Calls(np.fromfile, "{marker}"),
            Calls(bytearray, 2**40),
        ],
        ids=["system", "exec", "eval", "getattr", "np.load", "np.fromfile", "bytearray"],
    )
    def test_is_refused_and_runs_nothing(self, tmp_path: Path, call: Calls) -> None:
        marker = tmp_path / "marker"
        function, arguments = call.call
        filled = [item.format(marker=str(marker)) if isinstance(item, str) else item for item in arguments]
        if function is getattr:
            filled = ["os", "system"]

        error = refused(tmp_path / "batch", pickle.dumps({"data": Calls(function, *filled)}))

        assert error.error_code == "forbidden_pickle"
        assert "binary batches or Parquet" in error.message
        assert not marker.exists()

    @pytest.mark.parametrize(
        "data",
        [
            b"\x80\x02cos\nsystem\nU\x02id\x85R.",  # GLOBAL and REDUCE
            b"\x80\x02(U\x02idios\nsystem\n.",  # INST
            b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R.",  # STACK_GLOBAL
            b"\x80\x02cnumpy\nndarray\n}U\x01aK\x01sb.",  # BUILD: the state of an admitted name
            b"\x80\x02cnumpy\nndarray\n)\x81.",  # NEWOBJ of an admitted name
            b"\x80\x02cnumpy\nndarray\n)R.",  # a call of numpy.ndarray
            b"\x80\x02cnumpy\ndtype\nU\x02O8\x85R.",  # an array of objects
            b"\x80\x02cnumpy\ndtype\nU\x02u1\x85R(K\x03U\x01>tb.",  # of the other byte order
            b"\x80\x02c_codecs\nencode\nU\x01aU\x05rot13\x86R.",
            b"\x80\x02Pabc\n.",  # a persistent id
            b"\x80\x02\x82\x01.",  # an extension code
            b"\x80\x02r\xff\xff\xff\x7f.",  # a memo of 2**31 places
            b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a string longer than the file
            b"\x80\x63.",  # a protocol that does not exist
            b"\x80\x02.",  # nothing on the stack
            b"\x80\x02",
        ],
    )
    def test_written_by_hand_is_refused(self, tmp_path: Path, data: bytes) -> None:
        refused(tmp_path / "batch", data)

    def test_cannot_change_what_later_pickles_mean(self, tmp_path: Path) -> None:
        good = python_batch(made_up(3))
        for name in (b"numpy\ndtype", b"numpy.core.multiarray\n_reconstruct", b"_codecs\nencode"):
            refused(tmp_path / "batch", b"\x80\x02c" + name + b"\n}U\x08__call__K\x01sb.")
            refused(tmp_path / "batch", b"\x80\x02c" + name + b"\nN}U\x08__call__K\x01s\x86b.")

        (tmp_path / "batch").write_bytes(good)
        assert len(read_python_batch(tmp_path / "batch", name="batch")) == 3

    def test_cut_anywhere_is_refused(self, tmp_path: Path) -> None:
        data = python_batch(made_up(2))
        positions = [position for _, _, position in pickletools.genops(data) if position]

        for position in positions:
            refused(tmp_path / "batch", data[:position])

    def test_that_contains_itself_is_refused(self) -> None:
        itself: list[Any] = []
        itself.append(itself)

        with pytest.raises(pickle.UnpicklingError, match="nested"):
            load_plain(pickle.dumps(itself))
