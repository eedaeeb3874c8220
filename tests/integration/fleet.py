"""What the fault tests share: storms beside a node, and what a node may not leave behind."""

import fcntl
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import storm
from ledger import run_number
from patience import STALL
from wire import Wire

MIB = 1 << 20
SANITIZED = os.environ.get("CAIRN_TEST_SANITIZED", "")
REPORTS = ("ERROR: AddressSanitizer", "LeakSanitizer", "runtime error:", "ThreadSanitizer",
           "assertion", "Assertion")


def fetch(node, path, timeout=10 + STALL):
    """(status, text) of the node's HTTP port."""
    c = http.client.HTTPConnection("127.0.0.1", node.http_port, timeout=timeout)
    try:
        c.request("GET", path)
        r = c.getresponse()
        return r.status, r.read().decode()
    finally:
        c.close()


def state(node) -> dict:
    status, text = fetch(node, "/debug/state")
    assert status == 200, text
    return json.loads(text)


def info(node) -> dict:
    """Numbers of INFO."""
    with Wire(path=node.socket) as wire:
        lines = wire.call("INFO", "everything").decode().splitlines()
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {k: int(v) if v.isdigit() else v for k, v in pairs}


def fds(node) -> int:
    return len(os.listdir(f"/proc/{node.process.pid}/fd"))


def anonymous(node) -> int:
    """Bytes of memory that is not the arena's."""
    for line in Path(f"/proc/{node.process.pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


def eventually(what, timeout=10.0, step=0.02):
    """Waits until what() is true; its last answer otherwise fails the test."""
    until = time.monotonic() + timeout + STALL
    while not (last := what()):
        assert time.monotonic() < until, f"not within {timeout} s: {what.__doc__ or last}"
        time.sleep(step)
    return last


def quiet(node, files: int, timeout=10.0):
    """Waits until nothing of clients is left: connections, leases, pins, windows, requests."""
    def left():
        now = state(node)
        ram = now["tiers"][0]
        return {"clients": now["clients_count"], "leases": now["leases_count"],
                "processes": now["shared"]["processes"], "windows": now["shared"]["window_bytes"],
                "pins": now["shared"]["lease_pins"] + now["shared"]["operator_pins"],
                "leased": ram["leased_bytes"],
                "filling": ram["filling_bytes"], "running": now["workers"]["running"],
                "queued": now["workers"]["queued"],
                # HTTP has one open for this very question.
                "files": max(0, fds(node) - files - 1)}

    until = time.monotonic() + timeout + STALL
    while any((now := left()).values()):
        assert time.monotonic() < until, f"left behind after {timeout} s: " + \
            ", ".join(f"{k} {v}" for k, v in now.items() if v)
        time.sleep(0.05)


def sound(node):
    """Nothing was reported in the log, and the process lives."""
    said = node.said()
    assert not any(r in said for r in REPORTS), said[-8000:]
    assert node.process.poll() is None, f"ended with {node.process.returncode}: {said[-4000:]}"


def ends_well(node, timeout=15):
    sound(node)
    begun = time.monotonic()
    status = node.stop(60)
    took = time.monotonic() - begun
    said = node.said()
    assert not any(r in said for r in REPORTS), said[-8000:]
    assert status == 0, f"ended with {status}: {said[-4000:]}"
    assert took < timeout * (4 if SANITIZED else 1) + STALL, f"SIGTERM took {took:.1f} s"


class Fleet:
    """Storms against one node. A storm that ends by itself has found something."""

    def __init__(self, node, folder: Path, rng, count=4, strings=0.5, timeout=20.0):
        self.node, self.folder, self.rng = node, folder, rng
        self.strings, self.timeout = strings, timeout
        self.folder.mkdir()
        (folder / "gate").touch()
        self.gate = open(folder / "gate", "r")
        self.ledgers = [storm.ledger_of(folder, n, create=True) for n in range(count)]
        self.processes: list[subprocess.Popen | None] = [None] * count

    def start(self, number):
        command = [sys.executable, storm.__file__, f"--folder={self.folder}", f"--number={number}",
                   f"--port={self.node.port}", f"--socket={self.node.socket}",
                   f"--seed={self.rng.getrandbits(32)}", f"--strings={self.strings}",
                   f"--timeout={self.timeout}"]
        if number % 2:
            command.append("--local")
        with open(self.folder / f"said{number}", "ab") as said:
            self.processes[number] = subprocess.Popen(command, stdin=subprocess.DEVNULL,
                                                      stdout=said, stderr=said)

    def start_all(self):
        for number in range(len(self.processes)):
            self.start(number)

    def check(self):
        for number, process in enumerate(self.processes):
            if process and process.poll() not in (None, -signal.SIGKILL):
                said = (self.folder / f"said{number}").read_text()
                raise AssertionError(
                    f"storm {number} ended with {process.returncode}: {said[-3000:]}")

    def kill(self, number):
        """And waits until the node has noticed."""
        self.processes[number].kill()
        self.processes[number].wait(30)

    def end(self):
        """Lets all finish what they do."""
        for process in self.processes:
            if process and process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.send_signal(signal.SIGTERM)
        for number, process in enumerate(self.processes):
            if process and process.returncode != -signal.SIGKILL:
                # One that has only just started may not know the signal yet.
                assert process.wait(60) in (0, -signal.SIGTERM), \
                    (self.folder / f"said{number}").read_text()[-3000:]
        # What an operator pins outlives him, so also one who was killed before he unpinned it.
        with Wire(path=self.node.socket) as wire:
            for ledger in self.ledgers:
                assert wire.call("CAIRN.UNPIN", b"".join(ledger.keys[storm.STRINGS:])) >= 0

    def destroy(self):
        for process in self.processes:
            if process and process.poll() is None:
                process.kill()
                process.wait(30)

    def hold(self):
        """Nobody begins a step until let_go()."""
        (self.folder / "hold").touch()
        fcntl.flock(self.gate, fcntl.LOCK_EX)

    def let_go(self):
        (self.folder / "hold").unlink()
        fcntl.flock(self.gate, fcntl.LOCK_UN)

    def strings_flushed(self):
        """While held, after a flush of the strings was answered."""
        with Wire(path=self.node.socket) as wire:
            hello = wire.call("CAIRN.HELLO", 1)
            run = run_number(dict(zip(hello[::2], hello[1::2]))[b"run_id"])
        for ledger in self.ledgers:
            for i in range(storm.STRINGS):
                if ledger.usable(i, run):
                    ledger.dropped(i)

    def total(self, counter) -> int:
        return sum(ledger.counter(counter) for ledger in self.ledgers)

    def tally(self) -> str:
        return ", ".join(f"{self.total(name)} {name}" for name in
                         ("hits", "misses", "changes", "drops", "refused", "leases"))
