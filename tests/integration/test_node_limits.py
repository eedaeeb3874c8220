"""What a client may not do: hold connections, memory or the node's time. Everything has an end, and
INFO counts which."""

import os
import socket
import struct
import threading
import time

import pytest
import redis
from fleet import eventually, state
from patience import STALL, usual


def closed_within(s: socket.socket, seconds: float) -> float:
    """Seconds until the node has closed it; what came before is dropped."""
    start = time.monotonic()
    s.settimeout(seconds)
    try:
        while s.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - start


def counter(node, name: str) -> int:
    return node.redis().info("stats")[name]


def anonymous_kib(node) -> int:
    for line in open(f"/proc/{node.process.pid}/status"):
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise AssertionError("no RssAnon")


def test_connections_have_a_number(new_node):
    node = new_node().start("--clients-max=5")
    held = [node.connect() for _ in range(5)]
    for s in held:
        s.sendall(b"PING\r\n")
        assert s.recv(10) == b"+PONG\r\n"
    with node.connect() as s:
        assert s.recv(100) == b"-ERR max number of clients reached\r\n"
        assert s.recv(10) == b""
    held.pop().close()
    eventually(lambda: state(node)["clients_count"] == 4)
    r = node.redis()
    assert r.ping()
    assert r.info("stats")["rejected_connections"] == 1
    assert r.config_set("clients-max", "7")
    more = [node.connect() for _ in range(2)]
    for s in more:
        s.sendall(b"PING\r\n")
        assert s.recv(10) == b"+PONG\r\n"


def test_only_the_users_named_may_use_the_socket(new_node):
    node = new_node().start(f"--allow-uids={os.getuid() + 1}", wait=False)
    end = time.monotonic() + 30
    while True:
        try:
            assert node.redis().ping()
            break
        except redis.ConnectionError:
            assert time.monotonic() < end
    with node.connect() as s:
        assert s.recv(100) == b"-NOPERM this user may not connect; see the option allow-uids\r\n"
        assert s.recv(10) == b""
    assert counter(node, "rejected_connections") == 1


def test_who_says_nothing_is_closed(new_node):
    node = new_node().start("--stall-timeout=2s")
    with node.connect() as greeted, node.connect() as silent:
        greeted.sendall(b"PING\r\n")
        assert 1 < closed_within(silent, 10 + STALL) < 3 + STALL
        assert greeted.recv(10) == b"+PONG\r\n"
        time.sleep(2.5)
        greeted.sendall(b"PING\r\n")  # between requests there is no hurry
        assert greeted.recv(10) == b"+PONG\r\n"
    assert counter(node, "cairn_closed_handshake") == 1


def test_idle_clients_are_closed_if_asked_for(new_node):
    node = new_node().start("--idle-timeout=2s")
    with node.connect() as busy, node.connect() as idle:
        idle.sendall(b"PING\r\n")
        for _ in range(15):
            busy.sendall(b"PING\r\n")
            assert busy.recv(10) == b"+PONG\r\n"
            time.sleep(0.2)
        idle.recv(100)
        assert closed_within(idle, 10 + STALL) < 3 + STALL
    assert counter(node, "cairn_closed_idle") >= 1


@pytest.mark.parametrize("start", [
    b"PIN", b"*2\r\n$4\r\nECHO\r\n$1000\r\nxx", b"*3\r\n$3\r\nSET\r\n"])
def test_slow_requests_are_closed(new_node, start):
    """A byte now and then keeps nothing alive."""
    node = new_node().start("--stall-timeout=2s")
    with node.connect() as s:
        s.sendall(b"PING\r\n" + start)
        assert s.recv(10) == b"+PONG\r\n"
        begin = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - begin < 10 + STALL:
                s.sendall(b"x")
                time.sleep(0.1)
        assert time.monotonic() - begin < 4 + STALL
    assert counter(node, "cairn_closed_request") + counter(node, "cairn_closed_protocol") == 1


def test_a_long_value_may_take_its_time(new_node):
    node = new_node().start("--stall-timeout=2s")
    value = os.urandom(16 << 20)  # 1 MiB/s is allowed on top
    with node.connect() as s:
        s.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n" % len(value))
        for i in range(10):
            s.sendall(value[i * len(value) // 10:(i + 1) * len(value) // 10])
            time.sleep(0.4)
        s.sendall(b"\r\n")
        assert s.recv(10) == b"+OK\r\n"
    assert node.redis().get("k") == value


def test_who_takes_no_replies_is_read_no_more_and_closed(new_node):
    node = new_node().start("--stall-timeout=2s", "--output-max=256KiB")
    node.redis().set("v", b"x" * 200000)
    with node.connect() as s:
        s.setblocking(False)
        sent = 0
        begin = time.monotonic()
        try:
            while time.monotonic() - begin < 10 + STALL:
                try:
                    sent += s.send(b"GET v\r\n" * 1000)
                except BlockingIOError:
                    time.sleep(0.02)
        except OSError:
            pass
        assert time.monotonic() - begin < 5 + STALL
        assert sent < 8 << 20  # of which the node took what its buffer held
    assert counter(node, "cairn_closed_output") == 1
    assert counter(node, "total_commands_processed") < 1000


def test_a_slow_reader_gets_everything(new_node):
    """Backpressure pauses a client, and goes on where it was."""
    node = new_node().start("--output-max=64KiB")
    value = os.urandom(30000)
    node.redis().set("v", value)
    reply = b"$%d\r\n%s\r\n" % (len(value), value)
    count = 400
    with node.connect() as s:
        s.sendall(b"GET v\r\n" * count + b"PING\r\n")
        got = 0
        end = len(reply) * count + 7
        data = bytearray()
        while got < end:
            more = s.recv(100000)
            assert more
            data += more
            got += len(more)
            if got % 7 == 0:
                time.sleep(0.001)
    assert data == reply * count + b"+PONG\r\n"


def test_replies_come_before_the_end_of_a_half_closed_connection(node):
    with node.connect() as s:
        s.sendall(b"SET a 1\r\nGET a\r\n" * 500 + b"PING\r\n")
        s.shutdown(socket.SHUT_WR)
        data = b""
        while more := s.recv(65536):
            data += more
    assert data == b"+OK\r\n$1\r\n1\r\n" * 500 + b"+PONG\r\n"


def test_announced_lengths_take_no_memory(new_node):
    node = new_node().start("--client-memory=8MiB", "--ram=64MiB")
    r = node.redis()
    before = anonymous_kib(node)
    held = []
    for _ in range(50):
        s = node.connect()
        s.sendall(b"*1000000\r\n$60000000\r\n")
        held.append(s)
    for s in held:
        s.sendall(b"x" * 100)
    time.sleep(0.3)
    assert r.ping()
    assert anonymous_kib(node) - before < 20000
    for s in held:
        s.close()


def test_too_long_arguments_are_refused_and_read_past(new_node):
    node = new_node().start("--client-memory=1MiB", "--ram=64MiB")
    with node.connect() as s:
        long = b"x" * (4 << 20)
        s.sendall(b"*2\r\n$3\r\nDEL\r\n$%d\r\n%s\r\nPING\r\n" % (len(long), long))
        data = b""
        while not data.endswith(b"+PONG\r\n"):
            more = s.recv(65536)
            assert more
            data += more
    assert data == (b"-OOM command not allowed when used memory > 'maxmemory'.\r\n+PONG\r\n")
    assert counter(node, "cairn_payload_refused") == 1


def test_all_clients_together_have_a_limit(new_node):
    node = new_node().start("--clients-memory=4MiB", "--ram=64MiB")
    held = []
    for _ in range(16):  # each wants 1 MiB for a key
        s = node.connect()
        s.sendall(b"*2\r\n$4\r\nECHO\r\n$%d\r\n" % (1 << 20))
        held.append(s)
    eventually(lambda: counter(node, "cairn_payload_refused") == 13)
    answers = {b"$": 0, b"-": 0}
    for s in held:
        s.sendall(b"y" * (1 << 20) + b"\r\n")
        first = s.recv(1)
        answers[first] += 1
        s.close()
    assert answers[b"$"] == 3 and answers[b"-"] == 13
    eventually(lambda: state(node)["clients_count"] == 0)
    with node.connect() as s:  # and what they held is free again
        s.sendall(b"*2\r\n$4\r\nECHO\r\n$%d\r\n" % (1 << 20) + b"y" * (1 << 20) + b"\r\n")
        assert s.recv(1) == b"$"


@pytest.mark.parametrize("bad, answer", [
    (b"*1\r\n!4\r\nPING\r\n", b"-ERR Protocol error: expected '$', got '!'\r\n"),
    (b"*-2000000\r\nPING\r\n", b"+PONG\r\n"),
    (b"*2000000\r\n", b"-ERR Protocol error: invalid multibulk length\r\n"),
    (b"*1\r\n$99999999999\r\n", b"-ERR Protocol error: invalid bulk length\r\n"),
    (b'SET a "b\r\n', b"-ERR Protocol error: unbalanced quotes in request\r\n"),
])
def test_what_is_no_request(node, bad, answer):
    with node.connect() as s:
        s.sendall(bad)
        assert s.recv(200) == answer
        if answer.startswith(b"-"):
            assert s.recv(10) == b""
    assert node.redis().ping()


def test_aborted_uploads_give_their_memory_back(new_node):
    """Clients that vanish in the middle of a value, by FIN and by RST, 40 MiB of 64 each time."""
    node = new_node().start("--ram=64MiB", "--threads=2")
    for turn in range(10):
        held = []
        for i in range(5):
            s = node.connect(tcp=True)
            s.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n" % (8 << 20) + b"x" * 100000)
            held.append(s)
        for i, s in enumerate(held):
            if i % 2:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            s.close()
    eventually(lambda: state(node)["clients_count"] == 0)
    r = node.redis()
    assert r.set("k", b"v" * (16 << 20)) and r.get("k") == b"v" * (16 << 20)
    memory = r.info("memory")
    assert memory["cairn_filling_bytes"] == memory["cairn_receiving_bytes"] == 0
    assert memory["cairn_clients_bytes"] < 200000
    assert r.info("clients")["connected_clients"] == 1


def test_more_values_in_flight_than_memory_holds(new_node):
    """When rooms run out, values go to ordinary memory or are refused; nobody waits for ever."""
    node = new_node().start("--ram=16MiB", "--client-memory=8MiB")
    held = []
    for _ in range(12):
        s = node.connect()
        s.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n" % (2 << 20) + b"x" * 1000)
        held.append(s)
    time.sleep(0.2)
    for s in held:
        s.sendall(b"x" * ((2 << 20) - 1000) + b"\r\nPING\r\n")
        data = b""
        while not data.endswith(b"+PONG\r\n"):
            more = s.recv(1000)
            assert more
            data += more
        assert data.startswith((b"+OK\r\n", b"-OOM "))
        s.close()
    assert node.redis().get("k") == b"x" * (2 << 20)


def test_a_thousand_idle_connections_are_cheap(node):
    before = anonymous_kib(node)
    held = []
    for _ in range(1000):
        s = node.connect()
        s.sendall(b"PING\r\n")
        held.append(s)
    for s in held:
        assert s.recv(10) == b"+PONG\r\n"
    assert (anonymous_kib(node) - before) / 1000 < 64
    for s in held:
        s.close()
    end = time.monotonic() + STALL
    while node.redis().info("clients")["connected_clients"] > 1:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_running_out_of_descriptors_is_survived(new_node):
    import resource

    node = new_node()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    node.start()
    resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE, (64, 64))
    held = [node.connect() for _ in range(100)]
    eventually(lambda: "no connection can be accepted" in node.said())
    assert node.said().count("no connection can be accepted") < 20
    for s in held:
        s.close()

    def answers():
        try:
            return node.redis().ping()
        except redis.ConnectionError:
            return False

    eventually(answers)


def test_one_busy_client_does_not_hold_up_another(node):
    stop = threading.Event()

    def flood():
        with node.connect() as s:
            s.settimeout(20)
            while not stop.is_set():
                s.sendall(b"PING\r\n" * 20000)
                left = 7 * 20000
                while left:
                    left -= len(s.recv(left))

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        with node.connect() as s:
            times = []
            for _ in range(200):
                begin = time.monotonic()
                s.sendall(b"PING\r\n")
                assert s.recv(10) == b"+PONG\r\n"
                times.append(time.monotonic() - begin)
        assert usual(times) < 0.5
    finally:
        stop.set()
        thread.join(30)


def test_pipelines_of_any_length(node):
    with node.connect() as s:
        count = 50000
        threading.Thread(target=s.sendall, args=(b"ECHO abc\r\n" * count,)).start()
        left = 9 * count
        while left:
            more = s.recv(1 << 20)
            assert more
            left -= len(more)


def test_redis_py_survives_the_limits(new_node):
    node = new_node().start("--idle-timeout=200ms")
    r = node.redis(retry_on_error=[redis.ConnectionError])
    r.set("a", "1")
    time.sleep(0.6)
    assert r.get("a") == b"1"


def test_long_replies_to_some_hold_up_neither_short_ones_nor_each_other(new_node):
    """One client never reads its long replies, one reads slowly: with one network thread the others
    get theirs all the same, whole and in time."""
    node = new_node().start("--threads=1", "--ram=256MiB")
    value = os.urandom(4 << 20)
    node.redis().set("v", value)
    reply = b"$%d\r\n%s\r\n" % (len(value), value)
    stop = threading.Event()

    def crawl(s):
        while not stop.is_set() and s.recv(64 << 10):
            time.sleep(0.01)

    def fetch(result):
        with node.connect() as s:
            s.settimeout(30 + STALL)
            for _ in range(20):
                s.sendall(b"GET v\r\n" * 4)
                data = bytearray()
                while len(data) < 4 * len(reply):
                    data += s.recv(1 << 20)
                assert data == reply * 4
            result.append(True)

    with node.connect() as deaf, node.connect() as slow, node.connect() as short:
        for s in (deaf, slow):
            s.sendall(b"GET v\r\n" * 16)
        crawler = threading.Thread(target=crawl, args=(slow,))
        crawler.start()
        done = []
        fast = [threading.Thread(target=fetch, args=(done,)) for _ in range(3)]
        begin = time.monotonic()
        for thread in fast:
            thread.start()
        times = []
        while any(thread.is_alive() for thread in fast):
            at = time.monotonic()
            short.sendall(b"PING\r\n")
            assert short.recv(10) == b"+PONG\r\n"
            times.append(time.monotonic() - at)
            time.sleep(0.002)
        took = time.monotonic() - begin
        stop.set()
        crawler.join(30)
    assert len(done) == 3 and took < 20 + STALL
    assert usual(times) < 0.5
