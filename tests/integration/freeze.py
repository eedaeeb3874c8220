"""A process that stands still, or is no more. A signal is only on its way when os.kill() returns:
until it has reached each thread, the process may still answer."""

import os
import signal
import time
from pathlib import Path

from patience import STALL


def states(pid):
    """Of all its threads, as the kernel's letters."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            yield (task / "stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            continue


def reach(pid, which, letters):
    os.kill(pid, which)
    end = time.monotonic() + STALL
    while not set(now := list(states(pid))) <= letters:
        assert time.monotonic() < end, f"threads of {pid} are {now} {STALL} s after {which.name}"
        time.sleep(0.001)


def freeze(pid):
    reach(pid, signal.SIGSTOP, {"T", "t"})


def go_on(pid):
    os.kill(pid, signal.SIGCONT)


def kill(pid):
    """Of a process that another one waits for."""
    reach(pid, signal.SIGKILL, {"Z", "X"})
