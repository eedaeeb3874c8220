#!/usr/bin/env python3
"""Prefill and decode as two vLLM servers behind one address, the KV between them in Cairn.

    pd_proxy.py --prefill http://127.0.0.1:8100 --decode http://127.0.0.1:8200 --port 8000

A request goes to the prefill server first, for one token; its answer says how much of the prompt it
has saved. Then the request goes to the decode server with those words, and what that answers goes
to the client as it comes. Without a prefill server the decode server computes the prompt itself."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

ROUTES = ("/v1/completions", "/v1/chat/completions")
CONNECT_SECONDS = 2.0
PAUSE_FIRST, PAUSE_LAST = 0.5, 10.0
PIECE = 64 << 10
BODY_MAX = 64 << 20
DIGITS = 18
# Of a message, these belong to one connection.
HOP = {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer",
       "transfer-encoding", "upgrade", "content-length", "host", "expect", "accept-encoding"}


class Refused(Exception):
    """What the client is told, with a status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass
class Server:
    """One vLLM server. After it could not be reached it is left alone for a while."""

    host: str
    port: int
    seconds: float
    _until: float = 0.0
    _pause: float = 0.0

    @property
    def resting(self) -> bool:
        return time.monotonic() < self._until

    def reached(self) -> None:
        self._until = self._pause = 0.0

    def lost(self) -> None:
        self._pause = min(max(2 * self._pause, PAUSE_FIRST), PAUSE_LAST)
        self._until = time.monotonic() + self._pause

    def send(self, method: str, path: str, body: bytes | None,
             headers: dict[str, str]) -> tuple[http.client.HTTPConnection, Any]:
        """Its answer, of which the head has come; the caller closes the connection."""
        link = http.client.HTTPConnection(self.host, self.port, timeout=CONNECT_SECONDS)
        try:
            link.connect()
            link.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link.sock.settimeout(self.seconds)
            link.request(method, path, body, headers)
            return link, link.getresponse()
        except BaseException:
            link.close()
            raise


def prefill_body(asked: dict[str, Any], chat: bool) -> dict[str, Any]:
    """The request of which one token is computed, whatever the client wants of the answer."""
    body = {k: v for k, v in asked.items() if k not in ("stream_options", "best_of")}
    body |= {"max_tokens": 1, "min_tokens": 0, "n": 1, "stream": False}
    if chat:
        body["max_completion_tokens"] = 1
    params = transfer_params(asked)
    body["kv_transfer_params"] = {**params, "cairn": {**params.get("cairn", {}), "handoff": True}}
    return body


def decode_body(asked: dict[str, Any], handed: dict[str, Any]) -> dict[str, Any]:
    """The client's words about the cache count for it too: who said not to read is not made to."""
    params = transfer_params(asked)
    words = {**params.get("cairn", {}), **handed.get("cairn", {})}
    return {**asked, "kv_transfer_params": {**params, **handed, "cairn": words}}


def transfer_params(asked: dict[str, Any]) -> dict[str, Any]:
    params = asked.get("kv_transfer_params") or {}
    if not isinstance(params, dict) or not isinstance(params.get("cairn", {}), dict):
        raise Refused(400, "kv_transfer_params is not an object (with an object \"cairn\" in it)")
    return params


def worth_handing(asked: dict[str, Any], chat: bool) -> bool:
    """Not with several prompts in one request: the answer speaks of one. Nor where the engine
    reads no cache at all."""
    if asked.get("prompt_logprobs") is not None or asked.get("use_beam_search"):
        return False
    if asked.get("echo") and asked.get("logprobs") is not None:
        return False
    if chat:
        return True
    prompt = asked.get("prompt")
    if isinstance(prompt, list):
        return bool(prompt) and all(isinstance(token, int) for token in prompt)
    return isinstance(prompt, str)


class Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], prefill: Server, decode: Server, connections: int,
                 verbose: bool) -> None:
        super().__init__(address, Handler)
        self.prefill, self.decode, self.verbose = prefill, decode, verbose
        self._free = threading.BoundedSemaphore(connections)
        self._lock = threading.Lock()
        self.counts = {"requests": 0, "handed_over": 0, "decode_alone": 0, "failed": 0}

    def count(self, name: str) -> None:
        with self._lock:
            self.counts[name] += 1

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            with contextlib.suppress(OSError), request:
                request.setblocking(False)
                request.send(b"HTTP/1.1 503 Too many connections\r\nContent-Length: 0\r\n"
                             b"Connection: close\r\n\r\n")
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if self.verbose:
            super().handle_error(request, client_address)

    def hand_over(self, path: str, asked: dict[str, Any],
                  headers: dict[str, str]) -> dict[str, Any] | None:
        """What the prefill server says that it has saved; None: the decode server computes."""
        chat = path.endswith("chat/completions")
        if self.prefill.resting or not worth_handing(asked, chat):
            return None
        body = json.dumps(prefill_body(asked, chat)).encode()
        try:
            link, answer = self.prefill.send("POST", path, body, headers)
            with contextlib.closing(link):
                said = json.loads(answer.read())
            self.prefill.reached()
        except (OSError, http.client.HTTPException, ValueError) as why:
            self.prefill.lost()
            self.say(f"prefill at {self.prefill.host}:{self.prefill.port}: {why!r}")
            return None
        params = said.get("kv_transfer_params") if isinstance(said, dict) else None
        if answer.status != 200 or not isinstance(params, dict) \
                or not isinstance(params.get("cairn", {}), dict):
            self.say(f"prefill answers {answer.status} without kv_transfer_params")
            return None
        return params

    def say(self, text: str) -> None:
        if self.verbose:
            print(text, file=sys.stderr, flush=True)


class Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"
    timeout = 120.0  # of a client that sends nothing
    disable_nagle_algorithm = True
    wbufsize = 0

    def log_message(self, format: str, *args: Any) -> None:
        self.server.say(format % args)

    def do_GET(self) -> None:
        if self.path == "/health":
            self.health()
        elif self.path == "/v1/models":
            self.answer_of(lambda: self.server.decode.send("GET", self.path, None, self.passed()))
        elif self.path in ROUTES:
            self.refuse(Refused(405, f"{self.path} takes POST"))
        else:
            self.refuse(self.unknown())

    def do_POST(self) -> None:
        self.server.count("requests")
        try:
            asked = self.asked()
            transfer_params(asked)
            headers = {**self.passed(), "Content-Type": "application/json"}
            handed = self.server.hand_over(self.path, asked, headers)
        except Refused as why:
            self.refuse(why)
            return
        self.server.count("handed_over" if handed else "decode_alone")
        body = json.dumps(decode_body(asked, handed) if handed else asked).encode()
        self.answer_of(lambda: self.server.decode.send("POST", self.path, body, headers))

    def unknown(self) -> Refused:
        return Refused(404, f"there is no {self.path[:200]}; this proxy has {', '.join(ROUTES)}, "
                            "/v1/models and /health")

    def asked(self) -> dict[str, Any]:
        if self.path not in ROUTES:
            raise self.unknown()
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            raise Refused(411, "the request has no Content-Length; send one")
        if len(length) > DIGITS or int(length) > BODY_MAX:
            raise Refused(413, f"the request is too long; at most {BODY_MAX} bytes are taken")
        data = self.rfile.read(int(length))
        if len(data) < int(length):
            raise Refused(400, f"the request ended after {len(data)} of {length} bytes")
        try:
            asked = json.loads(data)
        except (ValueError, RecursionError) as why:
            raise Refused(400, f"the request is not JSON: {why}") from None
        if not isinstance(asked, dict):
            raise Refused(400, "the request is not a JSON object")
        return asked

    def passed(self) -> dict[str, str]:
        """Of the client's headers what is not about its connection to here."""
        return {k: v for k, v in self.headers.items() if k.lower() not in HOP}

    def answer_of(self, send: Any) -> None:
        decode = self.server.decode
        where = f"the decode server at {decode.host}:{decode.port}"
        try:
            link, answer = send()
        except TimeoutError:
            self.fail(Refused(504, f"{where} gave no answer in {decode.seconds:g} s"))
            return
        except (OSError, http.client.HTTPException) as why:
            self.fail(Refused(502, f"{where} cannot be asked: {why}"))
            return
        with contextlib.closing(link):
            self.pass_on(answer)

    def pass_on(self, answer: Any) -> None:
        """As it comes. A client that is gone ends the request at the decode server too: the
        connection to it is closed."""
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in HOP:
                self.send_header(name, value)
        length = answer.getheader("Content-Length")
        plain = length is not None or answer.status in (204, 304)
        if length is not None:
            self.send_header("Content-Length", length)
        elif self.request_version == "HTTP/1.0" and not plain:
            plain = self.close_connection = True  # it knows no chunks: the end is the end
            self.send_header("Connection", "close")
        elif not plain:
            self.send_header("Transfer-Encoding", "chunked")
        left = int(length) if length is not None else 0
        try:
            self.end_headers()
            while piece := answer.read1(PIECE):
                left -= len(piece)
                self.wfile.write(piece if plain else b"%x\r\n%s\r\n" % (len(piece), piece))
            if not plain:
                self.wfile.write(b"0\r\n\r\n")
            elif left > 0:
                raise http.client.IncompleteRead(b"", left)
        except (OSError, http.client.HTTPException) as why:
            self.server.count("failed")
            self.server.say(f"an answer broke off: {why!r}")
            self.close_connection = True  # the client sees that it is not whole

    def fail(self, why: Refused) -> None:
        self.server.count("failed")
        self.refuse(why)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses; to a client of no known version too."""
        self.request_version = self.protocol_version
        self.refuse(Refused(int(code), message or "the request cannot be read"))

    def refuse(self, why: Refused) -> None:
        self.close_connection = True  # its body may not have been read
        self.whole(why.status, {"error": {"message": str(why), "type": "proxy_error",
                                          "code": why.status}})

    def health(self) -> None:
        """200 if there is somebody to answer requests."""
        up = {name: alive(server) for name, server in
              (("prefill", self.server.prefill), ("decode", self.server.decode))}
        self.whole(200 if up["decode"] else 503, {**up, **self.server.counts})

    def whole(self, status: int, what: Any) -> None:
        body = json.dumps(what).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        try:
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            self.close_connection = True


def alive(server: Server) -> bool:
    try:
        link, answer = Server(server.host, server.port, CONNECT_SECONDS).send(
            "GET", "/health", None, {})
        with contextlib.closing(link):
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def server_of(url: str, seconds: float) -> Server:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as why:
        raise SystemExit(f"pd_proxy: {url!r}: {why}") from None
    if parts.scheme != "http" or not parts.hostname or parts.path.strip("/"):
        raise SystemExit(f"pd_proxy: {url!r} is not the address of a server; give "
                         "http://HOST:PORT, without a path")
    return Server(parts.hostname, port or 80, seconds)


def main() -> None:
    about = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(description=about[0], epilog=about[2])
    parser.add_argument("--prefill", required=True, metavar="URL")
    parser.add_argument("--decode", required=True, metavar="URL")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--prefill-timeout", type=float, default=60.0, metavar="SECONDS",
                        help="then the decode server computes (default: 60)")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS",
                        help="for a sign of the decode server (default: 600)")
    parser.add_argument("--connections", type=int, default=256,
                        help="of clients at once; one more is told 503 (default: 256)")
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args()
    for name in ("prefill_timeout", "timeout", "connections"):
        if not getattr(given, name) > 0:
            parser.error(f"--{name.replace('_', '-')} is {getattr(given, name)}; give more than 0")
    try:
        proxy = Proxy((given.host, given.port), server_of(given.prefill, given.prefill_timeout),
                      server_of(given.decode, given.timeout), given.connections, given.verbose)
    except (OSError, OverflowError) as why:
        raise SystemExit(f"pd_proxy: {given.host}:{given.port} cannot be listened on: {why}"
                         ) from None
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=proxy.shutdown).start())
    print(f"pd_proxy: on http://{given.host}:{proxy.server_port}", file=sys.stderr, flush=True)
    proxy.serve_forever(poll_interval=0.1)
    proxy.server_close()


if __name__ == "__main__":
    main()
