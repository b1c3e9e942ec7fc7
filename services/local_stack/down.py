"""`adaptive-moe down`: end the stack of a state folder from another terminal."""

import contextlib
import os
import signal
import time
from typing import Final

from services.local_stack.errors import StackError
from services.local_stack.process_records import ProcessRecords
from services.local_stack.state_folder import StateFolder

_PATIENCE_S: Final = 60.0
_POLL_S: Final = 0.1


def stop_stack(state: StateFolder) -> str:
    """Stop what runs in the folder, what a killed `up` left included. Returns a sentence for a person."""
    pid = state.holder()
    if pid is None:
        left = ProcessRecords(state.process_records).sweep()
        return f"Ended what an earlier run left: {', '.join(left)}" if left else f"Nothing runs in {state.root}"
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _PATIENCE_S
    while state.holder() == pid:
        if time.monotonic() > deadline:
            raise StackError(f"Process {pid} has not ended after {_PATIENCE_S:.0f} s. End it with `kill -9 {pid}`.")
        time.sleep(_POLL_S)
    return f"Stopped process {pid}"
