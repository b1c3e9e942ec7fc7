"""CIFAR's Python batches: pickles, read without giving what they say any power.

A pickle is a program. This one may build numbers, strings, bytes, lists, dicts and numpy arrays, and nothing else: any
other name is refused, and arrays are put together here from their bytes, so not even numpy's own loaders see its input.
"""

import io
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np

from services.shared.errors import InvalidDataset
from services.trainer_worker.image_cooperation.images import MAX_BYTES, ImageSet

_SIDE: Final = 32
_DATA: Final = "data"
_LABELS: Final = ("labels", "fine_labels")
_DTYPES: Final = frozenset({"u1", "i1", "i4", "i8", "u4", "u8", "f4", "f8", "|u1", "<i4", "<i8"})
_BROKEN: Final = (
    pickle.UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)
"""What a damaged or hostile pickle makes an unpickler raise."""


class ForbiddenPickle(pickle.UnpicklingError):
    """The pickle asks for something that is not plain data."""


def read_python_batch(path: Path, *, name: str) -> ImageSet:
    """Read one batch of 32x32 pictures. Raises InvalidDataset for anything that is not one."""
    if path.stat().st_size > MAX_BYTES:
        raise InvalidDataset(f"{name} is larger than {MAX_BYTES // 1024**2} MiB.")
    try:
        batch = load_plain(path.read_bytes())
        if not isinstance(batch, dict):
            raise InvalidDataset(f"{name} is a pickle, but of no dictionary: it is no CIFAR batch.")
        return _as_images({_text(key): value for key, value in batch.items()}, name=name)
    except ForbiddenPickle as error:
        raise InvalidDataset(
            f"{name} is refused: {error}. Only numpy arrays, bytes, strings, numbers, lists and dicts are read from "
            "pickles. Use CIFAR's binary batches or Parquet instead.",
            code="forbidden_pickle",
        ) from error
    except _BROKEN as error:
        raise InvalidDataset(f"{name} is no readable CIFAR batch ({type(error).__name__}: {error}).") from error


def load_plain(data: bytes) -> Any:
    """The plain data in a pickle. Raises ForbiddenPickle, or what a damaged pickle makes of the unpickler."""
    # The unpickler in Python: the one in C allots as much memory as a pickle of ten bytes tells it to.
    return _unwrapped(_PlainUnpickler(io.BytesIO(data), encoding="bytes").load())


def _as_images(batch: Mapping[str, Any], *, name: str) -> ImageSet:
    data = batch.get(_DATA)
    labels = next((batch[key] for key in _LABELS if key in batch), None)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * _SIDE**2:
        raise InvalidDataset(f"{name} needs 'data': an array of bytes with rows of {3 * _SIDE**2}.")
    if not isinstance(labels, list | np.ndarray):
        raise InvalidDataset(f"{name} needs 'labels': one number per row of 'data'.")
    pixels_NHWC = data.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    return ImageSet(np.ascontiguousarray(pixels_NHWC), np.array(labels, dtype=np.int64))


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


class _Sealed:
    """A name that a pickle may use. It has no state that a pickle could set."""

    __slots__ = ()

    def __setstate__(self, state: object) -> NoReturn:
        raise ForbiddenPickle("it sets the state of a function")


class _Dtype(_Sealed):
    """`numpy.dtype(code, ...)`: the code, if it is that of plain numbers."""

    def __call__(self, code: Any, *_: Any) -> "_DtypeCode":
        return _DtypeCode(_text(code))


class _DtypeCode:
    """The kind of an array's numbers."""

    __slots__ = ("code",)

    def __init__(self, code: str) -> None:
        if code not in _DTYPES:
            raise ForbiddenPickle(f"it holds an array of {code[:20]!r}")
        self.code = code

    def __setstate__(self, state: Any) -> None:
        if state[1] not in {"<", "|", b"<", b"|"}:
            raise ForbiddenPickle("it holds an array of another byte order")


class _NdarrayType(_Sealed):
    """`numpy.ndarray` as an argument; it cannot be called."""


class _Reconstruct(_Sealed):
    """`numpy.core.multiarray._reconstruct`: an array whose contents follow."""

    def __call__(self, *_: Any) -> "_Array":
        return _Array()


class _FromBuffer(_Sealed):
    """`numpy.core.numeric._frombuffer`: an array from its bytes."""

    def __call__(self, raw: Any, dtype: Any, shape: Any, order: Any) -> "_Array":
        array = _Array()
        array.fill(raw, dtype, shape, order="F" if _text(order) == "F" else "C")
        return array


class _Encode(_Sealed):
    """`_codecs.encode(text, 'latin1')`: how Python 3 writes bytes for Python 2."""

    def __call__(self, text: str, encoding: Any = "latin1") -> bytes:
        if _text(encoding) not in {"latin1", "latin-1"}:
            raise ForbiddenPickle(f"it encodes as {_text(encoding)[:20]!r}")
        return text.encode("latin-1")


class _Array:
    """A numpy array in the making."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, raw = state
        self.fill(raw, dtype, shape, order="F" if is_fortran else "C")

    def fill(self, raw: Any, dtype: Any, shape: Any, *, order: Any) -> None:
        """Take the contents; a raw part that does not fit the shape is a ValueError."""
        if not isinstance(dtype, _DtypeCode) or not isinstance(raw, bytes | bytearray):
            raise ForbiddenPickle("it holds an array that is not made of numbers")
        self.value = np.frombuffer(bytes(raw), dtype=dtype.code).reshape(tuple(shape), order=order)


_ADMITTED: Final[Mapping[tuple[str, str], _Sealed]] = {
    ("numpy", "ndarray"): _NdarrayType(),
    ("numpy", "dtype"): _Dtype(),
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct(),
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct(),
    ("numpy.core.numeric", "_frombuffer"): _FromBuffer(),
    ("numpy._core.numeric", "_frombuffer"): _FromBuffer(),
    ("_codecs", "encode"): _Encode(),
}


class _PlainUnpickler(pickle._Unpickler):  # the documented class, in Python
    """Knows the names of `_ADMITTED` and no others."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for an admitted name. Raises ForbiddenPickle for every other."""
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise ForbiddenPickle(f"it asks for {module[:60]}.{name[:60]}") from None


def _unwrapped(value: Any, depth: int = 0) -> Any:
    """`value` with real arrays, and no stand-in left."""
    if depth > 8:
        raise ForbiddenPickle("it is nested too deeply")
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, list | tuple):
        return [_unwrapped(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {key: _unwrapped(item, depth + 1) for key, item in value.items()}
    if value is None or isinstance(value, bytes | bytearray | str | bool | int | float):
        return value
    raise ForbiddenPickle(f"it holds a {type(value).__name__}")
