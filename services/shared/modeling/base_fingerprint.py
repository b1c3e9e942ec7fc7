"""The name of a base model by its content, without torch."""

import hashlib
import json
from pathlib import Path
from typing import Final

from services.shared.errors import InvalidRequest
from services.shared.tokenizer import model_file

_SAMPLE_BYTES: Final = 64 * 1024
_HASH_WHOLE_BYTES: Final = 64 * 1024**2


def base_fingerprint(path_or_id: str) -> str:
    """SHA-256 over the model's configuration and weights; two bases with equal fingerprints take the same adapters.

    Files up to 64 MiB are hashed whole. Of larger ones: the size, the safetensors header and 64 KiB samples of each
    64th part, so that a 15 GB model takes milliseconds and a retrained one still differs.
    """
    digest = hashlib.sha256()
    digest.update(_canonical_config(model_file(path_or_id, "config.json")))
    for path in weight_files(path_or_id):
        digest.update(f"{path.name}:{path.stat().st_size}:".encode())
        _hash_file(path, digest)
    return digest.hexdigest()


def weight_files(path_or_id: str) -> list[Path]:
    """The safetensors files of the model, in name order. Raises InvalidRequest when there are none."""
    try:
        index = model_file(path_or_id, "model.safetensors.index.json")
    except InvalidRequest:
        return [model_file(path_or_id, "model.safetensors")]
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    return [model_file(path_or_id, name) for name in names]


def _canonical_config(path: Path) -> bytes:
    """The configuration without what does not change the arithmetic."""
    config = json.loads(path.read_text())
    for key in ("_name_or_path", "transformers_version", "torch_dtype", "dtype"):
        config.pop(key, None)
    return json.dumps(config, sort_keys=True).encode()


def _hash_file(path: Path, digest: "hashlib._Hash") -> None:
    """Whole when small; header and evenly spread samples when large."""
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        if num_bytes <= _HASH_WHOLE_BYTES:
            while chunk := file.read(1024 * 1024):
                digest.update(chunk)
            return
        num_header_bytes = min(int.from_bytes(file.read(8), "little"), num_bytes)
        digest.update(file.read(min(num_header_bytes, _HASH_WHOLE_BYTES)))
        for part in range(64):
            file.seek(part * (num_bytes - _SAMPLE_BYTES) // 63)
            digest.update(file.read(_SAMPLE_BYTES))
