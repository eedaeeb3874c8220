"""What one request may ask for: it costs the node a bounded amount of memory, and others a bounded
time, whatever its arguments; and chunks and strings stay apart wherever they lie."""

import fcntl
import hashlib
import struct
import subprocess
import time

import pytest

from kv_client import MISS, RANGE, Kv, get_item
from patience import STALL, usual
from wire import Error, Gone, Wire, request


def memory(node, what="VmHWM") -> int:
    with open(f"/proc/{node.process.pid}/status") as lines:
        return next(int(at.split()[1]) << 10 for at in lines if at.startswith(what))


@pytest.mark.timeout(120)
def test_mget_of_one_key_many_times_does_not_take_the_memory_of_all_copies(node):
    times, value = 60_000, b"x" * 16384
    with Wire(path=node.socket, timeout=60) as k, Wire(path=node.socket, timeout=60) as other:
        assert k.call("SET", "key", value) == "OK"
        before = memory(node, "VmRSS")
        k.send(request("MGET", *["key"] * times))
        got = k.value()
        assert len(got) == times and got[0] == value and set(got) <= {value, None}
        assert memory(node) - before < 300 << 20  # a node's client-memory is 128 MiB
        assert other.call("PING") == "PONG"
        assert k.call("MGET", *["key"] * 1000) == [value] * 1000


@pytest.mark.timeout(120)
def test_lists_of_words_are_bounded_where_each_is_compared_with_much(node):
    with Wire(path=node.socket) as k:
        assert k.call("SET", "a" * 1000, "v") == "OK"
        own = k.call("CLIENT", "ID")
        assert b"id=%d " % own in k.call("CLIENT", "LIST", "ID", own, *range(10_000, 10_500))
        begin = time.monotonic()
        for words in (("CLIENT", "LIST", "ID", *range(1, 200_000)),
                      ("CONFIG", "GET", *["none"] * 200_000),
                      ("KEYS", b"*[" + b"b" * 4_000_000 + b"]"),
                      ("SCAN", 0, "MATCH", b"*[" + b"b" * 4_000_000 + b"]")):
            assert isinstance(k.call(*words), Error), words[:2]
        assert time.monotonic() - begin < 10 + STALL
        assert k.call("KEYS", b"a*[" + b"b" * 1000 + b"a]") == [b"a" * 1000]


@pytest.mark.timeout(120)
def test_patterns_that_take_long_are_compared_beside_others_and_in_time(new_node):
    node = new_node().start("--io-timeout=300ms")
    with Wire(path=node.socket) as k, Wire(path=node.socket) as other:
        for i in range(1000):
            assert k.call("SET", f"{i:04}" + "a" * 996, "v") == "OK"
        slow = b"*[" + b"b" * 1000 + b"]"
        for words in (("SCAN", 0, "COUNT", 4096, "MATCH", slow), ("KEYS", slow)):
            pings, answers = [], []
            for _ in range(3):
                begin = time.monotonic()
                k.send(request(*words))
                assert other.call("PING") == "PONG"
                pings.append(time.monotonic() - begin)
                answer = k.value()
                answers.append(time.monotonic() - begin)
                assert isinstance(answer, Error) or int(answer[0]) > 0, "all of them, in that time"
            assert usual(pings) < 1 and usual(answers) < 3, words[0]


@pytest.mark.timeout(120)
def test_keys_beyond_a_thousand_are_answered_as_fewer_are(node):
    pairs = {f"key{i}": f"value{i}".encode() for i in range(3000)}
    with Wire(path=node.socket) as k:
        assert k.call("MSET", *[x for pair in pairs.items() for x in pair]) == "OK"
        assert k.call("MGET", *pairs, "none") == [*pairs.values(), None]
        assert k.call("EXISTS", *pairs, "none") == len(pairs)


@pytest.mark.timeout(120)
def test_a_node_whose_messages_nobody_reads_goes_on(node):
    """They go to a pipe that is soon full."""
    path = node.place / "quiet.sock"
    command = [str(node.program), "--config=", f"--socket={path}", "--port=0", "--http-port=0",
               "--ram=64MiB"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as quiet:
        try:
            size = fcntl.fcntl(quiet.stderr, fcntl.F_SETPIPE_SZ, 4096)
            assert size == 4096
            while not path.exists():
                time.sleep(0.01)
            with Wire(path=path, timeout=10) as k:
                for _ in range(150):
                    assert k.call("CONFIG", "SET", "idle-timeout", "0s") == "OK"
            quiet.terminate()
            assert quiet.wait(20) == 0
        finally:
            quiet.kill()


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_what_a_browser_is_made_to_send_is_not_carried_out(node, method):
    with Wire(path=node.socket) as k, Wire(port=node.port) as browser:
        assert k.call("SET", "key", "value") == "OK"
        body = b"FLUSHALL\r\n" * 3
        head = (f"{method} / HTTP/1.1\r\nHost: 127.0.0.1:{node.port}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n")
        browser.send(head.encode() + body)
        with pytest.raises((Gone, ConnectionError)):
            while True:
                assert isinstance(browser.value(), Error)
        assert k.call("GET", "key") == b"value"


def string_name(key: bytes) -> bytes:
    tag = b"cairn string 1".ljust(16, b"\0")
    return hashlib.sha256(tag + struct.pack("<I", 0) + key).digest()


@pytest.mark.timeout(120)
def test_a_string_is_no_chunk_in_ram_or_on_disk(new_node, place):
    disk = (f"--disk-path={place / 'log'}", "--disk=256MiB")
    node, secret = new_node().start(*disk), b"secret string " * 1000
    name = string_name(b"key")
    with Kv(path=node.socket) as k:
        assert k.call("SET", "key", secret) == "OK"
        assert k.call("GET", "key") == secret
    for restart in (False, True):
        if restart:
            assert node.stop() == 0
            node.start(*disk)
        with Kv(path=node.socket) as k:
            # On disk a range is read by another way than a whole value.
            for item in (get_item(name, 14, flags=RANGE), get_item(name, len(secret))):
                assert k.get(item) == [(MISS, "absent", None)], restart
            assert k.call("CAIRN.SIDE", 2000, name) == [MISS, None]
            assert k.call("CAIRN.PIN", name) == 0
    with Kv(path=node.socket) as k:
        assert k.call("GET", "key") == secret
