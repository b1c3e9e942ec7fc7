"""Whether what is asked leaves a trace in the memory of the process that answers, which is this one."""

import gc
import sys
from collections.abc import Callable

NUM_WARM = 200
MAX_BLOCKS_PER_NAME = 0.5
"""A name that is kept takes a block of Python's memory at least; what the test and idle connections hold is few."""


def assert_leaves_no_trace(ask: Callable[[int], None], *, num_asked: int) -> None:
    """`ask` with a number names something new each time; so many times after as many as fill what is kept for good."""
    for number in range(NUM_WARM):
        ask(number)
    gc.collect()
    before = sys.getallocatedblocks()
    for number in range(NUM_WARM, NUM_WARM + num_asked):
        ask(number)
    gc.collect()
    grown = sys.getallocatedblocks() - before
    assert grown < MAX_BLOCKS_PER_NAME * num_asked
