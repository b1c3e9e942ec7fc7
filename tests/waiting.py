"""Waiting for what another thread or process will do: until it is so, never for a fixed time."""

import time
from collections.abc import Callable


def wait_until(
    holds: Callable[[], bool], *, seconds: float = 60.0, what: str = "what was waited for", every_s: float = 0.02
) -> float:
    """Seconds until it held. The bound is for a test that hangs: far above what a busy machine needs.

    What asks other processes should ask seldom, or it takes the processor time that they need to get there.
    """
    began = time.monotonic()
    while not holds():
        assert time.monotonic() < began + seconds, f"{what} did not come within {seconds:g} s"
        time.sleep(every_s)
    return time.monotonic() - began
