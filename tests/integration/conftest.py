"""Where the built things are, and a directory on a real file system for each test."""

import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from patience import STALL

ROOT = Path(__file__).resolve().parents[2]


def pytest_configure(config):
    config.addinivalue_line("markers", "timeout(seconds): a test that takes longer has failed")


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def programs() -> Path:
    """Test programs built by tests/run."""
    path = Path(os.environ.get("CAIRN_TEST_BIN", ROOT / "build/test/bin"))
    assert path.is_dir(), f"{path} is missing: run tests/run unit first"
    return path


@pytest.fixture
def place():
    """A directory under build/: O_DIRECT works there, which /tmp does not promise."""
    base = ROOT / "build" / "scratch"
    base.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(dir=base))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def full() -> bool:
    """tests/run --full"""
    return bool(os.environ.get("CAIRN_TEST_FULL"))


# Of several processes that run tests each has ports of its own.
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
OWN_PORTS = range(10_000 + WORKER, 32_000, WORKERS)
PORTS = itertools.cycle(random.sample(OWN_PORTS, len(OWN_PORTS)))


class Node:
    """A cairnd of its own: a free port, a socket and a log in `place`. Starts when it is made."""

    def __init__(self, program: Path, place: Path):
        self.program, self.place = program, place
        self.socket = str(place / "node.sock")
        self.port = self.http_port = 0
        self.process: subprocess.Popen | None = None
        self.log = place / "node.log"

    @staticmethod
    def free_port() -> int:
        """Below what the kernel gives to outgoing connections: one of these could have it while
        the node is started again. No port is given twice: its first owner may not listen yet."""
        while True:
            with socket.socket() as s:
                try:
                    s.bind(("127.0.0.1", next(PORTS)))
                    return s.getsockname()[1]
                except OSError:
                    continue

    def start(self, *options: str, env=None, timeout: float = 60, wait: bool = True):
        """`--name=value` options beside those of this object; the last one of a name counts."""
        self.port = self.port or self.free_port()
        self.http_port = self.http_port or self.free_port()
        given = ["--config=", f"--socket={self.socket}", f"--port={self.port}",
                 f"--http-port={self.http_port}", "--ram=64MiB", *options]
        for option in options:
            if option.startswith("--port="):
                self.port = int(option[7:])
            if option.startswith("--socket="):
                self.socket = option[9:]
            if option.startswith("--http-port="):
                self.http_port = int(option[12:])
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [str(self.program), *given], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **(env or {})})
        if wait:
            self.wait_ready(timeout)
        return self

    def wait_ready(self, timeout: float = 60) -> None:
        end = time.monotonic() + timeout
        while True:
            try:
                with self.connect() as s:
                    s.sendall(b"PING\r\n")
                    assert s.recv(64) == b"+PONG\r\n"
                    return
            except OSError as error:
                ended = self.process.poll() is not None
                if ended or time.monotonic() > end:
                    raise AssertionError(f"no node: {error}\n{self.said()}") from None
                time.sleep(0.01)

    def connect(self, tcp: bool = False, timeout: float = 20 + STALL) -> socket.socket:
        """A plain connection: over the unix socket, if there is one."""
        if tcp or not self.socket:
            return socket.create_connection(("127.0.0.1", self.port), timeout)
        s = socket.socket(socket.AF_UNIX)
        try:
            s.connect(self.socket)  # with a timeout set it would fail where the backlog is full
            s.settimeout(timeout)
        except OSError:
            s.close()
            raise
        return s

    def redis(self, **options):
        import redis

        return redis.Redis(port=self.port, **options)

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def stop(self, timeout: float = 30 + STALL) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def kill(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
        if self.process:
            self.process.wait(30 + STALL)


@pytest.fixture(scope="session")
def cairnd() -> Path:
    """The daemon, beside the `cairn` that $CAIRN_BIN names."""
    cairn = Path(os.environ.get("CAIRN_BIN", ROOT / "build/bin/cairn"))
    path = cairn.parent / "cairnd"
    assert path.is_file(), f"{path} is missing: run deploy/run build first"
    return path


@pytest.fixture
def new_node(cairnd, place):
    """Makes a Node that is not started; several have folders of their own."""
    made = []

    def make() -> Node:
        folder = place / f"node{len(made)}"
        folder.mkdir()
        made.append(Node(cairnd, folder))
        return made[-1]

    yield make
    for one in made:
        if one.process and one.process.poll() is None:
            one.process.terminate()
            try:
                one.process.wait(20 + STALL)
            except subprocess.TimeoutExpired:
                one.kill()
    for one in made:  # of builds with CAIRN_SANITIZE
        assert "Sanitizer" not in one.said() and "runtime error" not in one.said(), one.said()


@pytest.fixture
def node(new_node) -> Node:
    """A node in memory, 64 MiB, started."""
    return new_node().start()
