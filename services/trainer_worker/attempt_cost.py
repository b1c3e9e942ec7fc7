"""What a job took: left in its result, so that the next one's cost can be foretold."""

import resource
import sys
import time
from typing import Any

from services.trainer_worker.job_context import JobFolder


class AttemptCost:
    """Measures from where it is made to `told`. A job that goes on after an interruption tells nothing: its attempts
    before are not in it."""

    def __init__(self, folder: JobFolder) -> None:
        begun = folder.work / "begun"
        self._is_whole = not begun.exists()
        self._started_at = time.monotonic()
        begun.touch()

    def told(self) -> dict[str, Any]:
        """As a job's result has it."""
        if not self._is_whole:
            return {}
        seconds = time.monotonic() - self._started_at
        return {"run": {"seconds": round(seconds, 3), "peak_memory_bytes": _peak_memory_bytes()}}


def _peak_memory_bytes() -> int:
    """Of the GPU where the job has used one, else of the process, which runs one job; without importing torch."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    # Kilobytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
