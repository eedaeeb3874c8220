"""A node (cairnd) in a process of its own that can be killed, frozen and started again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

BINARY = Path(__file__).resolve().parents[1] / "build" / "bin" / "cairnd"
START_SECONDS = 60.0
STOP_SECONDS = 120.0


class NodeError(Exception):
    pass


class Node:
    """Serves one log; its socket is beside the log."""

    def __init__(self, folder: Path, *, ram: str, disk: str,
                 binary: Path = BINARY) -> None:
        self.folder = folder
        self.socket = folder / "cairn.sock"
        if len(os.fsencode(self.socket)) > 107:
            raise NodeError(f"the path of {self.socket} is too long for a socket; give a shorter "
                            "one with --out")
        self.log = folder / "cairnd.log"
        self._binary = binary
        self._options = [f"--socket={self.socket}", f"--disk-path={folder}", f"--ram={ram}",
                         f"--disk={disk}", "--port=0", "--http-port=0", f"--log-file={self.log}",
                         "--config="]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def uri(self) -> str:
        return f"unix:{self.socket}"

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "cairnd.err").open("ab") as errors:
            self._process = subprocess.Popen([self._binary, *self._options], stderr=errors,
                                             stdin=subprocess.DEVNULL, start_new_session=True)
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise NodeError(f"the node did not start; see {self.folder}/cairnd.err")
            time.sleep(0.01)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as s, contextlib.suppress(OSError):
            s.settimeout(1.0)
            s.connect(str(self.socket))
            s.sendall(b"PING\r\n")
            return s.recv(64) == b"+PONG\r\n"
        return False

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def send(self, what: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, what)

    def kill(self) -> None:
        """kill -9."""
        if self._process:
            self.send(signal.SIGKILL)
            self._process.wait()

    def stop(self) -> None:
        """A clean stop."""
        assert self._process
        self.send(signal.SIGTERM)
        code = self._process.wait(timeout=STOP_SECONDS)
        if code != 0:
            raise NodeError(f"the node ended with {code}; see {self.folder}/cairnd.err")

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
