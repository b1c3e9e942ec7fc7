"""Run as a script: tie a program to its parent's life and drop root, then become that program.

`python -I -S launch.py DEATH_SIGNAL USER_ID GROUP_ID PROGRAM [ARGUMENT...]`; an id of -1 keeps the present one.
It is a program of its own, because Python code between fork and exec is unsafe in a process with threads, and because
changing the user clears the parent-death signal, so that the order of the two steps matters. Imports nothing of ours.
"""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Never returns: ends as the program named in `arguments`, with this process's id."""
    death_signal, user_id, group_id = (int(value) for value in arguments[:3])
    parent = os.getppid()
    if user_id >= 0:
        os.setgroups([])
        os.setgid(group_id)
        os.setuid(user_id)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, death_signal)
        if os.getppid() != parent:
            # The parent died before the signal was asked for: nobody is left to stop the program.
            sys.exit(1)
    os.execv(arguments[3], arguments[3:])


if __name__ == "__main__":
    main(sys.argv[1:])
