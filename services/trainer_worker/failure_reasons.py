"""What the owner of a failed job is told: what went wrong and what to do. Tracebacks stay in the job's log."""

import errno
from typing import Any

from services.shared.errors import AmoeError, OutOfRoom

_MEMORY_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_cpu")


def failure_reason(error: BaseException, *, job_id: str) -> dict[str, Any]:
    """`{type, message, param, code}` of an error, whatever it is."""
    body: dict[str, Any] = _as_known_error(error, job_id).body()["error"]
    return body


def _as_known_error(error: BaseException, job_id: str) -> AmoeError:
    if isinstance(error, AmoeError):
        return error
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        where = f" while writing {error.filename!r}" if error.filename else ""
        return OutOfRoom(
            f"The disk is full{where}: make room in the storage folder, then submit the job again.", code="disk_full"
        )
    if _is_out_of_memory(error):
        return OutOfRoom(
            "Out of memory: try a smaller batch_size (with more gradient_accumulation_steps for the same effect), "
            "a smaller max_length, or mixed_precision 'bf16'.",
            code="out_of_memory",
        )
    return AmoeError(
        f"The job failed unexpectedly ({type(error).__name__}). The log of {job_id} in the storage folder says where; "
        "please report it.",
        code="internal_error",
    )


def _is_out_of_memory(error: BaseException) -> bool:
    # torch.OutOfMemoryError is a RuntimeError, and on the CPU it is a plain one: told by its words, without torch.
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _MEMORY_WORDS)
