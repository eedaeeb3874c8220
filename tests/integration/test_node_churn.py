"""Many clients that come, work, vanish and are killed while the configuration changes and somebody
looks; values have checkable bytes, so nobody may ever read another's. For sanitizer builds too."""

import hashlib
import random
import socket
import struct
import threading
import time
import urllib.request

import redis
from patience import STALL

KEYS = 3000


def value_of(key: int, version: int) -> bytes:
    """Starts with its key and version, and everything follows from them."""
    head = b"%08d:%08d:" % (key, version)
    size = 100 << (key % 10)
    block = hashlib.sha256(head).digest()
    return head + (block * (size // len(block) + 1))[:size]


def check(key: int, value: bytes | None) -> None:
    if value is not None:
        assert value == value_of(int(value[:8]), int(value[9:17])) and int(value[:8]) == key


def worker(node, seed, stop, failures):
    rng = random.Random(seed)
    r = node.redis(protocol=rng.choice((2, 3)))
    version = 0
    try:
        while not stop.is_set():
            key = rng.randrange(KEYS)
            try:
                if rng.random() < 0.5:
                    version += 1
                    r.set(f"k{key}", value_of(key, version * 100 + seed))
                elif rng.random() < 0.2:
                    keys = [rng.randrange(KEYS) for _ in range(10)]
                    for k, v in zip(keys, r.mget([f"k{k}" for k in keys])):
                        check(k, v)
                else:
                    check(key, r.get(f"k{key}"))
            except (redis.ConnectionError, redis.TimeoutError):
                pass  # killed, or the socket of a moment ago
            except redis.ResponseError as error:
                if not str(error).startswith(("OOM", "BUSY", "ERR the disk")):
                    raise
    except Exception as error:
        failures.append(error)
    r.close()


def vanisher(node, seed, stop, failures):
    """Leaves in the middle: of a request, of a value, of a reply, of a call that waits."""
    rng = random.Random(seed)
    while not stop.is_set():
        try:
            s = node.connect(tcp=True, timeout=0.3)
            key = rng.randrange(KEYS)
            text = rng.choice([
                b"*3\r\n$3\r\nSET\r\n$4\r\ngone\r\n$500000\r\n" + b"x" * rng.randrange(1000),
                b"GET k%d\r\n" % key * rng.randrange(1, 200),
                b"*2\r\n$3\r\nGET\r\n$1",
                b"MGET" + b"".join(b" k%d" % i for i in range(0, KEYS, 30)) + b"\r\n",
                b"KEYS *\r\n" * 3,
            ])
            s.sendall(text)
            if rng.random() < 0.5:
                s.recv(100)
            if rng.random() < 0.5:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            s.close()
        except OSError:
            pass


def operator(node, seed, stop, failures):
    rng = random.Random(seed)
    r = node.redis()
    try:
        while not stop.is_set():
            clients = r.client_list()
            r.info("everything")
            if len(clients) > 3 and rng.random() < 0.3:
                victim = rng.choice(clients)
                if victim["id"] != str(r.client_id()):
                    r.execute_command("CLIENT", "KILL", "ID", victim["id"])
            r.config_set("output-max", rng.choice(["64KiB", "16MiB"]),
                         "stall-timeout", rng.choice(["2s", "30s"]))
            r.config_get("*")
            url = f"http://127.0.0.1:{node.http_port}" + rng.choice(["/metrics", "/debug/state"])
            urllib.request.urlopen(url, timeout=20).read()
    except Exception as error:
        failures.append(error)
    r.close()


def test_churn(new_node, full):
    node = new_node()
    folder = node.place / "disk"
    folder.mkdir()
    node.start("--ram=16MiB", "--disk=256MiB", f"--disk-path={folder}", "--threads=3",
               "--workers=3", "--client-memory=4MiB", timeout=60)
    stop, failures = threading.Event(), []
    roles = [worker] * 5 + [vanisher] * 2 + [operator]
    threads = [threading.Thread(target=role, args=(node, seed, stop, failures))
               for seed, role in enumerate(roles)]
    for t in threads:
        t.start()
    time.sleep(60 if full else 6)
    r = node.redis()
    end = time.monotonic() + STALL

    def met():
        stats = r.info("stats")
        return stats["cairn_waited_commands"] > 0 and stats["total_commands_processed"] > 500

    while not met():
        assert time.monotonic() < end, r.info("stats")
        time.sleep(0.1)
    stop.set()
    for t in threads:
        t.join(60)
    assert not failures and node.process.poll() is None
    end = time.monotonic() + STALL
    while r.info("clients")["connected_clients"] > 1:
        assert time.monotonic() < end, [str(c) for c in r.client_list()]
        time.sleep(0.05)
    # The last one that went is not counted any more before its room is given back.
    while (memory := r.info("memory"))["cairn_filling_bytes"] or memory["cairn_receiving_bytes"]:
        assert time.monotonic() < end, memory
        time.sleep(0.05)
    assert memory["cairn_clients_bytes"] < 200000
    assert node.stop() == 0
