"""What the owner of a failed job is told: what went wrong and what to do. Tracebacks stay in the job's log."""

import errno
from pathlib import Path
from typing import Any

from services.shared.errors import AmoeError, OutOfRoom

_MEMORY_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_cpu")
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_ROOM_WORDS = (
    "no space left on device", *(f"os error {number}" for number in sorted(_NO_ROOM)),
    "inline_container", "pytorchstreamwriter",
)  # fmt: skip
"""How safetensors and torch.save put it: neither raises an OSError."""


def failure_reason(error: BaseException, *, job_id: str, checkpoint: Path | None = None) -> dict[str, Any]:
    """`{type, message, param, code}` of an error, whatever it is; `checkpoint` is the last good one, which is kept."""
    reason = known_error(error) or AmoeError(
        f"The job failed unexpectedly ({type(error).__name__}). The log of {job_id} in the storage folder says where; "
        "please report it.",
        code="internal_error",
    )
    body: dict[str, Any] = reason.body()["error"]
    if checkpoint is not None:
        step = checkpoint.name.rpartition("-")[2]
        body["message"] += f" The checkpoint of step {step} is kept: GET /jobs/{job_id}/artifacts lists its files."
    return body


def known_error(error: BaseException) -> AmoeError | None:
    """`error` in words that its owner can act on, or None where it can only be a fault of ours."""
    if isinstance(error, AmoeError):
        return error
    if _is_out_of_disk(error):
        return OutOfRoom(
            "A file could not be written: the disk of the storage folder is full, or its quota is used up. Make room "
            "there, then submit the job again.",
            code="disk_full",
        )
    if _is_out_of_memory(error):
        return OutOfRoom(
            "Out of memory: try a smaller batch_size (with more gradient_accumulation_steps for the same effect), "
            "a smaller max_length, or mixed_precision 'bf16'.",
            code="out_of_memory",
        )
    return None


def _is_out_of_disk(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in _NO_ROOM
    is_writer = type(error).__name__ == "SafetensorError" or isinstance(error, RuntimeError)
    return is_writer and any(word in str(error).lower() for word in _NO_ROOM_WORDS)


def _is_out_of_memory(error: BaseException) -> bool:
    # torch.OutOfMemoryError is a RuntimeError, and on the CPU it is a plain one: told by its words, without torch.
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _MEMORY_WORDS)
