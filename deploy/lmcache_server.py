"""LMCache's own server in a process that can be killed, and how vLLM is told to use it: beside
Cairn in the bench, in front of it in the tests.

Without `--supported-transfer-mode auto` an engine without a GPU finds no server that takes it, and
without a name for shared memory its bytes are pickled through a socket, at a tenth of the speed."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from demo_engine import EngineError

CHUNK = 256  # tokens; what is shorter is not stored
START_SECONDS = 240.0


def installed() -> bool:
    return importlib.util.find_spec("lmcache") is not None


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


class Server:
    """Each start has an empty L1."""

    def __init__(self, log: Path, *, gib: float, adapter: dict[str, Any] | None = None,
                 ports: tuple[int, int] | None = None) -> None:
        """adapter: its L2. ports: for engines and for HTTP, where others know them already."""
        self.log = log
        self._port, self._http_port = ports or (_free_port(), _free_port())
        name = f"cairn_{os.getpid()}_{self._port}"
        self._shared = Path("/dev/shm") / f"lmcache_l1_pool_{name}"
        more = ["--l2-adapter", json.dumps(adapter)] if adapter else []
        with log.open("a") as output:
            self._process = subprocess.Popen(
                [str(Path(sys.executable).parent / "lmcache"), "server",
                 "--port", str(self._port), "--http-port", str(self._http_port),
                 "--l1-size-gb", str(gib), "--eviction-policy", "LRU", "--shm-name", name,
                 "--supported-transfer-mode", "auto", "--disable-metrics", *more],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                env=dict(os.environ, LMCACHE_TRACK_USAGE="false", LMCACHE_DISABLE_BANNER="1"))
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise EngineError(f"LMCache's server did not start; see {log}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            url = f"http://127.0.0.1:{self._http_port}/healthcheck"
            with urllib.request.urlopen(url, timeout=20):
                return True
        return False

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def transfer(self, **more: Any) -> dict[str, Any]:
        """vLLM's configuration of a connector to this server, with more of LMCache's options."""
        return {"kv_connector": "LMCacheMPConnector", "kv_role": "kv_both",
                "kv_connector_module_path": "lmcache.integration.vllm.lmcache_mp_connector",
                "kv_load_failure_policy": "recompute",
                "kv_connector_extra_config": {"lmcache.mp.host": "tcp://127.0.0.1",
                                              "lmcache.mp.port": self._port,
                                              **{f"lmcache.mp.{n}": v for n, v in more.items()}}}

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._shared.unlink(missing_ok=True)  # a server that is killed leaves it

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
