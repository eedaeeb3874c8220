"""kill -9 under load, again and again, judged from outside."""

import os
import random
import signal
import subprocess
import threading
import time

import pytest

from oracle import Oracle

KEYS = 96
VALUE_MAX = 96 * 1024
MIB = 1 << 20
DISK = 512 * MIB
SEGMENT = 16 * MIB
FORMS = [("uring", "through", 60), ("pool", "through", 40), ("uring", "on-evict", 20)]


def spawn(programs, uri, seed):
    return subprocess.Popen([programs / "crash_worker", uri, str(seed), str(KEYS), str(VALUE_MAX),
                             "2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


class Reader(threading.Thread):
    """Empties the worker's pipe, so that it never waits for its judge."""

    def __init__(self, pipe):
        super().__init__(daemon=True)
        self.pipe, self.lines, self.ready = pipe, [], threading.Event()
        self.start()

    def run(self):
        for text in self.pipe:
            self.lines.append(text)
            if text[0] in "RE":
                self.ready.set()
        self.ready.set()


def iteration(programs, uri, oracle, rng):
    """One life of a worker; returns the seconds its open took, None if it was killed before."""
    worker = spawn(programs, uri, rng.getrandbits(32))
    begun = time.monotonic()
    reader = Reader(worker.stdout)
    worker.stdin.write(oracle.expected())
    worker.stdin.close()
    during_open = rng.random() < 0.2
    if during_open:
        time.sleep(rng.uniform(0, 0.06))
    else:
        assert reader.ready.wait(120), "open and a read of every key took more than 120 s"
        time.sleep(rng.choice([0.002, 0.05, 0.3]) * rng.random())
    opened = time.monotonic() - begun if reader.ready.is_set() else None
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    reader.join(10)
    for text in reader.lines:
        assert text[0] != "E", f"open failed: {text[2:]}"
        if text.endswith("\n"):
            oracle.line(text)
    oracle.killed()
    return opened


@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine,write,times", FORMS, ids=["-".join(f[:2]) for f in FORMS])
def test_kill(programs, place, full, engine, write, times):
    seed = int(os.environ.get("CAIRN_TEST_SEED", random.SystemRandom().getrandbits(32)))
    rng = random.Random(seed)
    oracle = Oracle(KEYS, DISK, SEGMENT)
    uri = (f"embedded://{place}/log?ram=16MiB&disk={DISK // MIB}MiB&engine={engine}&write={write}"
           "&prewrite=no&lock_wait=20s")
    times *= 10 if full else 1
    opened = []
    print(f"seed {seed}, {times} kills")
    # A busy machine lets few values through in the life of a worker.
    for number in range(4 * times):
        if number >= times and oracle.verified > 10 * times and oracle.certain > times:
            break
        try:
            opened.append(iteration(programs, uri, oracle, rng))
        except AssertionError as wrong:
            raise AssertionError(f"seed {seed}, kill {number}: {wrong}") from wrong
    lived = [t for t in opened if t is not None]
    print(f"{oracle.verified} values read back, {oracle.certain} of them certain to be there, "
          f"{oracle.appended >> 20} MiB appended, open at most {max(lived):.2f} s")
    assert oracle.verified > 10 * times and oracle.certain > times
