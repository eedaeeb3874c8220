"""tools/pd-proxy between a client and two HTTP servers that answer as vLLM's do: what each is
asked, what reaches the client and when, and what happens if one of them does not behave."""

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from patience import STALL

ROOT = Path(__file__).resolve().parents[2]
PROXY = ROOT / "tools/pd-proxy/pd_proxy.py"
SAVED = {"cairn": {"tokens": 19, "tail": True}}

pytestmark = pytest.mark.timeout(60)


class Server(ThreadingHTTPServer):
    """Keeps what it was asked; `behave` makes of a handler and a request an answer."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, behave):
        super().__init__(("127.0.0.1", 0), Answer)
        self.behave, self.asked, self.headers = behave, [], []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        self.gone = sys.exc_info()[1]

    def stop(self):
        self.shutdown()
        self.server_close()


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.whole({"path": self.path})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        self.server.headers.append(dict(self.headers))
        self.server.behave(self, body)

    def whole(self, what, status=200):
        body = what if isinstance(what, bytes) else json.dumps(what).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def begin_stream(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def piece(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))


def prefills(handler, body):
    handler.whole({"choices": [{"text": "x"}], "kv_transfer_params": SAVED})


def decodes(handler, body):
    if not body.get("stream"):
        handler.whole({"choices": [{"text": "hello"}]})
        return
    handler.begin_stream()
    for token in (b"data: a\n\n", b"data: b\n\n", b"data: [DONE]\n\n"):
        handler.piece(token)
        handler.server.pause.wait(5)
    handler.wfile.write(b"0\r\n\r\n")


class Client:
    """The proxy as a process, and connections to it."""

    def __init__(self, prefill, decode, *options):
        self.process = subprocess.Popen(
            [sys.executable, PROXY, "--prefill", prefill, "--decode", decode, "--port", "0",
             *options], stderr=subprocess.PIPE, text=True)
        self.port = int(self.process.stderr.readline().rsplit(":", 1)[1])

    def ask(self, path, body, method="POST", **headers):
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        link.request(method, path, data, headers)
        answer = link.getresponse()
        return answer.status, json.loads(answer.read())

    def stop(self):
        self.process.terminate()
        assert self.process.wait(5) == 0
        self.process.stderr.close()


@pytest.fixture
def pair():
    """A prefill and a decode server that behave, and the proxy before them."""
    made = []

    def make(prefill=prefills, decode=decodes, *options):
        servers = Server(prefill), Server(decode)
        servers[1].pause = threading.Event()
        servers[1].pause.set()
        client = Client(servers[0].url, servers[1].url, *options)
        made.extend([client, *servers])
        return client, *servers

    yield make
    for one in made:
        one.stop()


def test_prefill_first_then_decode_with_its_words(pair):
    client, prefill, decode = pair()
    asked = {"model": "m", "prompt": "once", "max_tokens": 9, "min_tokens": 4, "n": 2, "best_of": 2,
             "temperature": 0.5}
    status, said = client.ask("/v1/completions", asked, Authorization="Bearer t")
    assert status == 200 and said["choices"][0]["text"] == "hello"
    (path, first), = prefill.asked
    assert path == "/v1/completions"
    assert first == {"model": "m", "prompt": "once", "max_tokens": 1, "min_tokens": 0, "n": 1,
                     "temperature": 0.5, "stream": False,
                     "kv_transfer_params": {"cairn": {"handoff": True}}}
    assert decode.asked == [("/v1/completions", {**asked, "kv_transfer_params": SAVED})]
    for server in (prefill, decode):
        assert server.headers[0]["Authorization"] == "Bearer t"


def test_chat_and_streams(pair):
    client, prefill, decode = pair()
    asked = {"messages": [{"role": "user", "content": "hi \u00e9"}], "max_completion_tokens": 50,
             "stream": True, "stream_options": {"include_usage": True},
             "kv_transfer_params": {"cairn": {"write": False}}}
    decode.pause.clear()
    link = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
    link.request("POST", "/v1/chat/completions", json.dumps(asked).encode())
    answer = link.getresponse()
    assert answer.getheader("Content-Type") == "text/event-stream"
    assert answer.read1() == b"data: a\n\n", "the first token waits for the second"
    decode.pause.set()
    assert answer.read() == b"data: b\n\ndata: [DONE]\n\n"
    link.request("GET", "/health")  # the same connection goes on
    health = json.loads(link.getresponse().read())
    assert health["prefill"] and health["decode"] and health["handed_over"] == 1
    first = prefill.asked[0][1]
    assert first["max_tokens"] == first["max_completion_tokens"] == 1
    assert first["stream"] is False and "stream_options" not in first
    assert first["kv_transfer_params"] == {"cairn": {"write": False, "handoff": True}}
    assert decode.asked[0][1] == {**asked, "kv_transfer_params": {
        "cairn": {"write": False, "tokens": 19, "tail": True}}}


def test_a_client_that_knows_no_chunks(pair):
    """HTTP/1.0, as proxies speak it: the end of the connection is the end of the answer."""
    client, prefill, decode = pair()
    body = b'{"prompt": "a", "stream": true}'
    with socket.create_connection(("127.0.0.1", client.port), 20) as s:
        s.sendall(b"POST /v1/completions HTTP/1.0\r\nConnection: keep-alive\r\n"
                  b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        head, _, said = s.makefile("rb").read().partition(b"\r\n\r\n")
    assert b" 200 " in head and b"Connection: close" in head and b"chunked" not in head
    assert said == b"data: a\n\ndata: b\n\ndata: [DONE]\n\n"


@pytest.mark.parametrize("asked", [
    {"prompt": ["one", "two"]}, {"prompt": [[1, 2], [3]]}, {"prompt": []},
    {"prompt": "one", "prompt_logprobs": 2}, {"prompt": "one", "use_beam_search": True},
    {"prompt": "one", "echo": True, "logprobs": 0}])
def test_what_is_not_handed_over(pair, asked):
    client, prefill, decode = pair()
    assert client.ask("/v1/completions", asked)[0] == 200
    assert not prefill.asked and decode.asked == [("/v1/completions", asked)]


def nonsense(handler, body):
    handler.whole(b"<html>")


def fails(handler, body):
    handler.whole({"error": "no"}, 500)


def says_nothing(handler, body):
    handler.whole({"choices": [], "kv_transfer_params": None})


def says_wrong(handler, body):
    handler.whole({"choices": [], "kv_transfer_params": {"cairn": 5}})


def hangs(handler, body):
    time.sleep(2 * STALL)


def hangs_up(handler, body):
    handler.close_connection = True


@pytest.mark.parametrize("behave", [nonsense, fails, says_nothing, says_wrong, hangs, hangs_up])
def test_a_prefill_server_that_does_not_behave(pair, behave):
    client, prefill, decode = pair(behave, decodes, "--prefill-timeout", "0.5")
    begun = time.monotonic()
    asked = {"prompt": "once"}
    assert client.ask("/v1/completions", asked)[0] == 200
    assert time.monotonic() - begun < 0.5 + STALL
    assert len(prefill.asked) == 1 and decode.asked == [("/v1/completions", asked)]


def test_a_prefill_server_that_is_gone_and_comes_back(pair):
    client, prefill, decode = pair()
    port = prefill.server_port
    prefill.stop()
    asked = {"prompt": "once"}
    for _ in range(3):
        begun = time.monotonic()
        assert client.ask("/v1/completions", asked)[0] == 200
        assert time.monotonic() - begun < 1 + STALL
    assert decode.asked == [("/v1/completions", asked)] * 3
    again = ThreadingHTTPServer(("127.0.0.1", port), Answer)
    again.asked, again.headers, again.behave = [], [], prefills
    threading.Thread(target=again.serve_forever, args=(0.01,), daemon=True).start()
    end = time.monotonic() + STALL
    while not again.asked and time.monotonic() < end:
        time.sleep(0.1)
        assert client.ask("/v1/completions", asked)[0] == 200
    assert decode.asked[-1][1] == {**asked, "kv_transfer_params": SAVED}
    again.shutdown()
    again.server_close()
    prefill.stop = lambda: None


def test_a_decode_server_that_does_not_behave(pair):
    client, prefill, decode = pair(prefills, fails)
    assert client.ask("/v1/completions", {"prompt": "a"}) == (500, {"error": "no"})
    decode.behave = hangs_up
    status, said = client.ask("/v1/completions", {"prompt": "a"})
    assert status == 502 and str(decode.server_port) in said["error"]["message"]
    decode.stop()
    decode.stop = lambda: None
    status, said = client.ask("/v1/completions", {"prompt": "a"})
    assert status == 502 and "cannot be asked" in said["error"]["message"]
    assert client.ask("/health", None, "GET")[0] == 503


def test_a_decode_server_that_stops_in_time_or_never(pair):
    client, prefill, decode = pair(prefills, hangs, "--timeout", "0.5")
    status, said = client.ask("/v1/completions", {"prompt": "a"})
    assert status == 504 and "0.5 s" in said["error"]["message"]

    def breaks_off(handler, body):
        if body["stream"]:
            handler.begin_stream()
            handler.piece(b"data: a\n\n")
        else:
            handler.send_response(200)
            handler.send_header("Content-Length", "100")
            handler.end_headers()
            handler.wfile.write(b"half")
        handler.close_connection = True

    decode.behave = breaks_off
    for stream in (True, False):
        with pytest.raises(http.client.HTTPException):
            client.ask("/v1/completions", {"prompt": "a", "stream": stream})


def test_a_client_that_leaves_ends_the_request(pair):
    def endless(handler, body):
        handler.begin_stream()
        while True:
            handler.piece(b"data: a\n\n")
            time.sleep(0.01)

    client, prefill, decode = pair(prefills, endless)
    link = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
    link.request("POST", "/v1/completions", json.dumps({"prompt": "a", "stream": True}).encode())
    assert link.getresponse().read1()
    link.close()
    end = time.monotonic() + STALL
    while not hasattr(decode, "gone") and time.monotonic() < end:
        time.sleep(0.02)
    assert isinstance(decode.gone, OSError), "the decode server still writes"


@pytest.mark.parametrize("path, body, status, said", [
    ("/v1/completions", b"{", 400, "not JSON"),
    ("/v1/completions", b"[" * 100_000, 400, "not JSON"),
    ("/v1/completions", b"\xff\xfe", 400, "not JSON"),
    ("/v1/completions", b"[1]", 400, "not a JSON object"),
    ("/v1/completions", b'{"kv_transfer_params": 5}', 400, "kv_transfer_params"),
    ("/v1/completions", b'{"kv_transfer_params": {"cairn": []}}', 400, "kv_transfer_params"),
    ("/v1/embeddings", b"{}", 404, "/v1/chat/completions")])
def test_bad_requests(pair, path, body, status, said):
    client, prefill, decode = pair()
    got, answer = client.ask(path, body)
    assert got == status and said in answer["error"]["message"]
    assert not prefill.asked and not decode.asked
    assert client.ask("/v1/completions", {"prompt": "a"})[0] == 200


def test_bad_messages(pair):
    client, prefill, decode = pair()
    head = "POST /v1/completions HTTP/1.1\r\nHost: a\r\n"
    for text, status in ((head + "\r\n", b" 411 "), (head + "Content-Length: x\r\n\r\n", b" 411 "),
                         (head + "Content-Length: 99999999999\r\n\r\n", b" 413 "),
                         (head + f"Content-Length: {'9' * 5000}\r\n\r\n", b" 413 "),
                         (head + "Content-Length: 10\r\n\r\n{}", b" 400 "),
                         ("GARBAGE\r\n\r\n", b" 400 "), ("PUT /health HTTP/1.1\r\n\r\n", b" 501 ")):
        with socket.create_connection(("127.0.0.1", client.port), 10) as s:
            s.sendall(text.encode())
            s.shutdown(socket.SHUT_WR)
            assert status in s.makefile("rb").readline(), text
    assert client.ask("/v1/completions", None, "GET")[0] == 405
    assert client.ask("/v1/models", None, "GET") == (200, {"path": "/v1/models"})


def test_connections_are_bounded(pair):
    client, prefill, decode = pair(prefills, decodes, "--connections", "3")
    held = [socket.create_connection(("127.0.0.1", client.port), 10) for _ in range(3)]
    time.sleep(0.2)
    with socket.create_connection(("127.0.0.1", client.port), 10) as s:
        assert b" 503 " in s.makefile("rb").readline()
    for s in held:
        s.close()
    end = time.monotonic() + STALL
    while True:
        try:
            assert client.ask("/v1/completions", {"prompt": "a"})[0] == 200
            break
        except (OSError, ValueError, http.client.HTTPException):
            assert time.monotonic() < end


def test_many_at_once(pair):
    client, prefill, decode = pair()
    failures = []

    def one(i):
        for k in range(10):
            text = f"{i}-{k}"
            if client.ask("/v1/completions", {"prompt": text})[0] != 200:
                failures.append(text)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(16)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures
    assert sorted(b["prompt"] for _, b in prefill.asked) == sorted(
        f"{i}-{k}" for i in range(16) for k in range(10))
    assert all(b["kv_transfer_params"] == SAVED for _, b in decode.asked)


@pytest.mark.parametrize("options, said", [
    (["--prefill", "localhost:8100"], "http://HOST:PORT"),
    (["--prefill", "http://a:99999"], "out of range"),
    (["--decode", "http://a/v1"], "without a path"),
    (["--timeout", "0"], "--timeout is 0"),
    (["--port", "99999"], "99999"),
    (["--prefill-timeout", "soon"], "soon")])
def test_wrong_options_are_said(options, said):
    given = ["--prefill", "http://127.0.0.1:1", "--decode", "http://127.0.0.1:2", *options]
    ended = subprocess.run([sys.executable, PROXY, *given], capture_output=True, text=True,
                           timeout=20)
    assert ended.returncode != 0 and said in ended.stderr
    assert "Traceback" not in ended.stderr
