"""How much memory this process has needed at most."""

import resource
import sys

import torch


def peak_memory_bytes() -> int:
    """Of the GPU where there is one, else of the process; since its start."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # Kilobytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
