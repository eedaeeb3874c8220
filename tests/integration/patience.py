"""For how long a busy machine may stand still: a thread that could run was seen to wait 20 s for a
processor. A bound that stands for a deadline has this much more room; whether calls wait at all is
seen from the one in the middle, since a machine does not stand still at every call."""

import statistics
import time
from pathlib import Path

STALL = 40.0  # seconds


def blocked():
    """Seconds on a clock that stands still while this thread could run and has no processor."""
    try:
        delay = int(Path("/proc/thread-self/schedstat").read_text().split()[1])
    except OSError:  # a kernel without it
        delay = 0
    return time.monotonic() - delay / 1e9


def usual(seconds):
    """What most calls took, however long a few of them stood still."""
    return statistics.median(seconds)
