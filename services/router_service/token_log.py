"""A request's tokens and their gates as few bytes: what `RequestRow.token_log` holds.

One zlib stream of: `ATL1`, the numbers of prompt tokens, generated tokens and names (u32 each); the names (UTF-8, each
behind its u16 length); then per token its id (u32) and its count of weights (u16); then per weight its
name's index (u16) and its value (f32). Little-endian. Only weights other than 0 are kept.
"""

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

_MAGIC: Final = b"ATL1"
_COUNTS: Final = struct.Struct("<III")
_TOKEN: Final = np.dtype([("id", "<u4"), ("num_weights", "<u2")])
_WEIGHT: Final = np.dtype([("name", "<u2"), ("value", "<f4")])
_LEVEL: Final = 6


@dataclass(frozen=True)
class TokenLog:
    """Prompt tokens, then generated ones: ids, and per token the weights by name."""

    num_prompt_tokens: int
    token_ids: tuple[int, ...]
    gates: tuple[Mapping[str, float], ...]


def encode_token_log(log: TokenLog) -> bytes:
    """The bytes of `log`; weights are kept in single precision."""
    names = sorted({name for gates in log.gates for name in gates})
    index = {name: position for position, name in enumerate(names)}
    tokens = np.empty(len(log.token_ids), dtype=_TOKEN)
    tokens["id"] = log.token_ids
    kept = [[(index[name], value) for name, value in gates.items() if value] for gates in log.gates]
    tokens["num_weights"] = [len(pairs) for pairs in kept]
    weights = np.array([pair for pairs in kept for pair in pairs], dtype=_WEIGHT)
    num_generated = len(log.token_ids) - log.num_prompt_tokens
    header = _MAGIC + _COUNTS.pack(log.num_prompt_tokens, num_generated, len(names))
    return zlib.compress(header + _packed_names(names) + tokens.tobytes() + weights.tobytes(), _LEVEL)


@dataclass(frozen=True)
class PackedTokenLog:
    """The same, column by column."""

    num_prompt_tokens: int
    names: tuple[str, ...]
    token_ids: NDArray[np.uint32]
    """[T]"""
    num_weights: NDArray[np.uint16]
    """[T] how many of the weights are a token's; they are in the tokens' order."""
    weight_names: NDArray[np.uint16]
    weights: NDArray[np.float32]


def decode_token_log(packed: bytes) -> TokenLog:
    """What was encoded. Raises ValueError for bytes that are not a token log."""
    log = unpack_token_log(packed)
    ends = np.cumsum(log.num_weights, dtype=np.int64)
    pairs = list(zip(log.weight_names.tolist(), log.weights.tolist(), strict=True))
    gates = tuple(
        {log.names[name]: value for name, value in pairs[end - count : end]}
        for end, count in zip(ends.tolist(), log.num_weights.tolist(), strict=True)
    )
    return TokenLog(log.num_prompt_tokens, tuple(log.token_ids.tolist()), gates)


def unpack_token_log(packed: bytes) -> PackedTokenLog:
    """What was encoded, in arrays. Raises ValueError for bytes that are not a token log."""
    try:
        raw = zlib.decompress(packed)
    except zlib.error as error:
        raise ValueError("not a token log") from error
    if raw[: len(_MAGIC)] != _MAGIC:
        raise ValueError("not a token log of a known format")
    num_prompt, num_generated, num_names = _COUNTS.unpack_from(raw, len(_MAGIC))
    names, offset = _unpacked_names(raw, len(_MAGIC) + _COUNTS.size, num_names)
    tokens = np.frombuffer(raw, dtype=_TOKEN, count=num_prompt + num_generated, offset=offset)
    weights = np.frombuffer(raw, dtype=_WEIGHT, offset=offset + tokens.nbytes)
    return PackedTokenLog(
        num_prompt_tokens=num_prompt,
        names=tuple(names),
        token_ids=tokens["id"],
        num_weights=tokens["num_weights"],
        weight_names=weights["name"],
        weights=weights["value"],
    )


def _packed_names(names: Sequence[str]) -> bytes:
    encoded = [name.encode() for name in names]
    return b"".join(struct.pack("<H", len(name)) + name for name in encoded)


def _unpacked_names(raw: bytes, offset: int, count: int) -> tuple[list[str], int]:
    names = []
    for _ in range(count):
        (length,) = struct.unpack_from("<H", raw, offset)
        names.append(raw[offset + 2 : offset + 2 + length].decode())
        offset += 2 + length
    return names, offset
