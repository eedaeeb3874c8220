"""Reading in place and writing through a window: what an attached client can and cannot do, and
what is left of it when it dies."""

import ctypes
import fcntl
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cairn
from freeze import freeze, go_on
from kv_client import CORRUPT, OK, Kv, checks, get_item, key_of, put_item, value_of
from patience import STALL, usual
from test_node_kv import chain, connect, press, put_chain, state, until
from wire import Error, request

HERE = Path(__file__).parent
F_GET_SEALS, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_FUTURE_WRITE = 1034, 1, 2, 4, 16


@pytest.fixture
def victim(request):
    """Starts kv_victim.py; what is left of it ends with the test."""
    made = []

    def start(node, plan, seed=0, **options):
        command = [sys.executable, str(HERE / "kv_victim.py"), node.socket, plan, str(seed)]
        p = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                             **options)
        made.append(p)
        assert p.stdout.readline().startswith("ready")
        return p

    yield start
    for p in made:
        p.kill()
        p.wait()


def ask(p, line):
    p.stdin.write(line + "\n")
    p.stdin.flush()
    return p.stdout.readline().strip()


def shared(node):
    return state(node)["shared"]


def held_chain(kv):
    put_chain(kv, [(key_of("held", i), value_of(key_of("held", i), 1 << 20), bytes(32))
                   for i in range(4)])
    return [key_of("held", i) for i in range(4)]


def named_memory(pid: int) -> list[str]:
    """What the process has open or mapped in /dev/shm: others may have theirs there."""
    process = Path("/proc", str(pid))
    have = [os.readlink(link) for link in (process / "fd").iterdir()]
    have += (process / "maps").read_text().splitlines()
    return [line for line in have if "/dev/shm/" in line]


# --- what is handed over ---


def test_the_arena_cannot_be_written(node):
    kv = connect(node)
    arena_bytes, window_bytes = kv.attach(1 << 20)
    assert arena_bytes >= 64 << 20 and window_bytes == 2 << 20
    arena, window = kv.fds
    seals = fcntl.fcntl(arena, F_GET_SEALS)
    assert seals & F_SEAL_FUTURE_WRITE and seals & F_SEAL_SHRINK and seals & F_SEAL_GROW
    assert seals & F_SEAL_SEAL
    with pytest.raises(PermissionError):
        mmap.mmap(arena, arena_bytes)
    with pytest.raises(OSError):
        os.write(arena, b"x")
    with pytest.raises(OSError):
        os.pwrite(arena, b"x", 8192)
    with pytest.raises(OSError):
        os.ftruncate(arena, arena_bytes // 2)
    with pytest.raises(OSError):
        os.posix_fallocate(arena, arena_bytes, 4096)
    libc = ctypes.CDLL(None, use_errno=True)
    punch_and_keep_size = 3
    assert libc.fallocate(arena, punch_and_keep_size, ctypes.c_long(0), ctypes.c_long(4096)) == -1
    again = os.open(f"/proc/self/fd/{arena}", os.O_RDWR)
    with pytest.raises(PermissionError):
        mmap.mmap(again, arena_bytes)
    os.close(again)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int,
                          ctypes.c_int, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    at = libc.mmap(None, arena_bytes, mmap.PROT_READ, mmap.MAP_SHARED, arena, 0)
    assert libc.mprotect(at, arena_bytes, mmap.PROT_READ | mmap.PROT_WRITE) == -1
    remove = 9
    assert libc.madvise(at, arena_bytes, remove) == -1
    libc.munmap(at, arena_bytes)
    seals = fcntl.fcntl(window, F_GET_SEALS)
    assert seals & F_SEAL_SHRINK and seals & F_SEAL_GROW and seals & F_SEAL_SEAL
    with pytest.raises(OSError):
        os.ftruncate(window, 0)
    assert not named_memory(node.process.pid)
    links = chain("whole", [3 << 20])
    put_chain(kv, links)
    assert kv.fetch(links[0][0], 3 << 20) == links[0][1]


def test_who_may_attach(node):
    assert isinstance(Kv(port=node.port).attach(0), Error)
    kv = connect(node)
    key = key_of("before")
    assert kv.put(key, b"bytes") == [OK, 0]
    lease, _ = kv.lease([key])
    assert "lease" in kv.attach(0)
    assert kv.call("CAIRN.RELEASE", lease) == 1
    assert kv.attach(0)[1] == 0 and kv.window is None
    assert "attached already" in kv.call("CAIRN.ATTACH", 0)
    assert shared(node)["processes"] == 1
    others = [connect(node) for _ in range(5)]
    for one in others:
        one.attach(1 << 20)
    told = shared(node)
    assert told["processes"] == 1 and told["window_bytes"] == 5 * (2 << 20)
    for one in others:
        one.close()
    until(lambda: shared(node)["window_bytes"] == 0)


def test_windows_are_bounded(node):
    kv = connect(node)
    assert kv.attach(1 << 60)[1] == 64 << 20
    kv.close()
    until(lambda: shared(node)["window_bytes"] == 0)
    more = [connect(node) for _ in range(5)]
    sizes = [one.attach(20 << 20)[1] for one in more]
    assert sizes == [20 << 20, 20 << 20, 20 << 20, 4 << 20, 0]
    assert shared(node)["window_bytes"] == 64 << 20
    assert more[-1].put(key_of("inline"), b"bytes through the socket") == [OK, 0]


def test_a_window_is_asked_for_by_who_writes(node):
    kv = connect(node)
    assert "attach" in kv.more_window(1 << 20)
    kv.attach(0)
    assert "number of bytes" in kv.more_window(-1)
    assert kv.more_window(0) == 0
    assert kv.more_window(1 << 20) == 2 << 20
    assert shared(node)["window_bytes"] == 2 << 20
    assert "already" in kv.more_window(1 << 20)
    key = key_of("late window")
    value = value_of(key, 5000)
    kv.window[:len(value)] = value
    assert kv.put_window(key, 0, len(value), checks(value)) == [OK, 0]
    kv.close()
    until(lambda: shared(node)["window_bytes"] == 0)
    with cairn.open(f"unix:{node.socket}") as store:
        out = bytearray(len(value))
        assert store.get([key], [out]) == [True] and out == value
        assert shared(node)["window_bytes"] == 0, "who reads has no window"
        lease = store.lease([key])  # its answers are read past before that of the window
        lease.release()
        assert store.put([key_of("more")], [value]) == [True]
        assert shared(node)["window_bytes"] == 32 << 20
        assert store.get([key_of("more")], [out]) == [True] and out == value
    until(lambda: shared(node)["window_bytes"] == 0)


def test_put_from_the_window(node):
    kv = connect(node)
    size = kv.attach(8 << 20)[1]
    rng = random.Random(11)
    for i in range(60):
        key = key_of("window", i)
        value = value_of(key, rng.choice([1, 100, 4097, 262_144, 262_145, 1 << 20, 3_000_000]))
        at = rng.choice([0, size - len(value), rng.randrange(size - len(value))])
        kv.window[at:at + len(value)] = value
        assert kv.put_window(key, at, len(value), checks(value)) == [OK, 0]
        kv.window[at:at + len(value)] = bytes(len(value))
        assert kv.fetch(key, len(value)) == value
    key = key_of("outside")
    for offset, length in ((size, 1), (size - 9, 10), (2**64 - 5, 10), (2**64 - 10, 10),
                           (2**63, 3)):
        answer = kv.call("CAIRN.PUT", 1000, put_item(key, length, offset=offset, flags=1 << 8),
                         b"c" * 8, b"", b"")
        assert isinstance(answer, Error), (offset, length, answer)
    answer = kv.call("CAIRN.PUT", 1000, put_item(key, 3, flags=1 << 8), checks(b"abc"), b"", b"abc")
    assert "not both" in answer
    assert kv.put_window(key, 0, 100, b"8 bytes.") == [CORRUPT, 3]
    assert kv.lookup([key]) == [0, 0]
    punch_and_keep_size, none = 3, bytes(1 << 20)
    kv.window[:1 << 20] = value_of(key, 1 << 20)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.fallocate(kv.fds[1], punch_and_keep_size, ctypes.c_long(0),
                          ctypes.c_long(size)) == 0
    assert kv.put_window(key, 0, 1 << 20, checks(value_of(key, 1 << 20))) == [CORRUPT, 3]
    assert kv.put_window(key, 0, 1 << 20, checks(none)) == [OK, 0]
    assert kv.fetch(key, 1 << 20) == none


def test_a_window_that_changes_under_the_copy(node, victim):
    """Whatever the client writes meanwhile: refused, or exactly what was claimed."""
    kv = connect(node)
    kv.attach(4 << 20)
    patterns = [value_of(key_of("pattern", i), 1 << 20) for i in range(2)]
    sums = [checks(pattern) for pattern in patterns]
    fd = os.dup(kv.fds[1])

    def inherit():
        os.dup2(fd, 3)
        os.set_inheritable(3, True)

    victim(node, "hammer", preexec_fn=inherit, close_fds=False)
    counts, begun, i = {OK: 0, CORRUPT: 0}, time.monotonic(), 0
    while (since := time.monotonic() - begun) < 6 or since < STALL and (
            counts[OK] == 0 or counts[CORRUPT] <= 10):
        key, i = key_of("hammered", i % 8), i + 1
        part = 65536 if i % 3 else 1 << 20
        claim = sums[i % 2] if part == 1 << 20 else checks(patterns[i % 2][:part])
        status, _ = kv.put_window(key, 0, part, claim, replace=True)
        counts[status] += 1
        if status == OK:
            assert kv.fetch(key, part) == patterns[i % 2][:part]
            lease, views = kv.lease([key])
            assert kv.view(views[0]) == patterns[i % 2][:part]
            assert kv.call("CAIRN.RELEASE", lease) == 1
    assert counts[CORRUPT] > 10, counts
    assert counts[OK] > 0, counts


# --- leases ---


def test_read_in_place(node):
    kv = connect(node)
    kv.attach()
    links = chain("place", [1, 5000, 262_144, 262_145, 1 << 20])
    put_chain(kv, links)
    lease, views = kv.lease([key for key, _, _ in links], ttl=1)
    assert [kv.view(view) for view in views] == [value for _, value, _ in links]
    press(kv, 150)
    time.sleep(0.3)
    assert [kv.view(view) for view in views] == [value for _, value, _ in links]
    new = value_of(links[4][0], 1 << 20, 1)
    assert kv.put(links[4][0], new, replace=True) == [OK, 0]
    assert kv.call("CAIRN.DELETE", 60_000, links[3][0]) == [OK]
    press(kv, 100, "again")
    assert [kv.view(view) for view in views] == [value for _, value, _ in links]
    assert kv.call("CAIRN.RENEW", lease, 1) == OK
    assert kv.call("CAIRN.RELEASE", lease) == 1
    until(lambda: shared(node)["lease_pins"] == 0)


def damage(node, kv, view):
    """Flips a bit in the middle of a value, in the node's own memory."""
    for line in Path(f"/proc/{node.process.pid}/maps").read_text().splitlines():
        where, _, _, _, inode, *_ = line.split(maxsplit=5)
        first, end = (int(x, 16) for x in where.split("-"))
        if end - first == len(kv.arena) and int(inode) == os.fstat(kv.fds[0]).st_ino:
            break
    else:
        raise AssertionError("the arena is not mapped as one")
    at = first + view[0] + view[1] // 2
    with open(f"/proc/{node.process.pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(at)
        byte = memory.read(1)[0]
        memory.seek(at)
        memory.write(bytes([byte ^ 4]))


@pytest.mark.parametrize("way", ["range", "verify"])
def test_damage_is_found_and_dropped(new_node, way):
    """A flipped bit in RAM: no reader takes it for the value; the disk's copy is found again."""
    node = new_node()
    node.start(f"--disk-path={node.place / 'node.cairn'}", "--disk=256MiB")
    kv = connect(node)
    kv.attach()
    key, size = key_of("damaged"), 1 << 20
    assert kv.put(key, value_of(key, size)) == [OK, 0]
    assert kv.call("CAIRN.FLUSH", 4000) == OK
    lease, views = kv.lease([key])
    damage(node, kv, views[0])
    assert kv.view(views[0]) is None
    if way == "verify":
        assert kv.call("CAIRN.VERIFY", key_of("absent") + key) == 1
        assert kv.call("CAIRN.VERIFY", key) == 0
    else:
        got = kv.get(get_item(key, 100, offset=size // 2, flags=1))
        assert got == [(-1, "checksum", None)]
    assert kv.fetch(key, size) == value_of(key, size), "from disk"
    _, again = kv.lease([key])
    assert kv.view(again[0]) == value_of(key, size)
    assert kv.call("CAIRN.RELEASE", lease) == 1


def test_release_all_is_of_one_connection(node):
    one, two = connect(node), connect(node)
    keys = held_chain(one)
    one.attach()
    two.attach()
    first = [one.lease(keys)[0] for _ in range(3)]
    second, _ = two.lease(keys)
    assert len({*first, second}) == 4
    assert one.call("CAIRN.RELEASE", "ALL") == 3
    assert state(node)["leases_count"] == 1
    assert one.call("CAIRN.RELEASE", second) == 1, "the process's, whichever connection"


def test_a_closed_connection_keeps_what_may_be_read(node, victim):
    kv = connect(node)
    held_chain(kv)
    p = victim(node, "hold")
    assert ask(p, "check") == "good"
    assert ask(p, "close") == "closed"
    until(lambda: shared(node)["orphans"] == 1)
    assert shared(node)["lease_pins"] == 4
    press(kv, 150)
    assert ask(p, "check") == "good"
    assert kv.call("CAIRN.DELETE", 60_000, key_of("held", 1)) == [OK]
    press(kv, 100, "again")
    assert ask(p, "check") == "good"
    assert ask(p, "reconnect") == "released 1"
    assert shared(node)["orphans"] == 0 and shared(node)["lease_pins"] == 0


@pytest.mark.parametrize("close_first", [False, True])
def test_a_dead_process_leaves_nothing(node, victim, close_first):
    kv = connect(node)
    held_chain(kv)
    p = victim(node, "hold")
    assert shared(node)["lease_pins"] == 4
    if close_first:
        assert ask(p, "close") == "closed"
    p.kill()
    until(lambda: shared(node)["lease_pins"] == 0)
    until(lambda: shared(node)["processes"] == 0)
    assert shared(node)["orphans"] == 0


def test_a_child_does_not_inherit_the_leases(node, victim):
    """The connection lives on in a child, but whose memory was counted on is gone."""
    held_chain(connect(node))
    p = victim(node, "heir")
    assert p.stdout.readline() == "renewed -4\n"
    answer = p.stdout.readline()
    assert "is gone" in answer, answer
    assert shared(node)["lease_pins"] == 0
    p.stdin.write("done\n")
    p.stdin.flush()


def test_the_node_stops_under_its_readers(node, victim):
    """The mapping outlives the daemon: a reader of a lease sees its bytes to the end."""
    held_chain(connect(node))
    p = victim(node, "hold")
    other = connect(node)
    other.attach(4 << 20)
    begin = time.monotonic()
    assert node.stop() == 0
    assert time.monotonic() - begin < 8 + STALL
    assert ask(p, "check") == "good"


def test_a_stopped_process_keeps_its_slots_and_blocks_nobody(node, victim):
    kv = connect(node)
    held_chain(kv)
    p = victim(node, "hold")
    freeze(p.pid)
    took = []
    for i in range(300):
        key = key_of("others", i)
        begin = time.monotonic()
        assert kv.put(key, value_of(key, 500_000)) == [OK, 0]
        assert kv.fetch(key, 500_000) == value_of(key, 500_000)
        took.append(time.monotonic() - begin)
    assert max(took) < 2 + STALL and usual(took) < 0.5
    assert shared(node)["lease_pins"] == 4
    go_on(p.pid)
    assert ask(p, "check") == "good"
    assert ask(p, "release") == "released 1"


@pytest.mark.timeout(300)
def test_processes_killed_at_any_moment(node, victim, full):
    """Others' bytes stay right, and all the memory comes back."""
    kv = connect(node)
    kv.attach(4 << 20)
    keys = held_chain(kv)
    mine, views = kv.lease(keys)
    free = state_free(node)
    rng = random.Random(99)
    living = []
    for i in range(120 if full else 25):
        living.append(victim(node, "storm", seed=1000 + i))
        time.sleep(rng.random() * 0.15)
        if len(living) >= 3:
            p = living.pop(rng.randrange(len(living)))
            assert p.poll() is None, "a storm ended by itself: wrong bytes, or a failed call"
            p.send_signal(rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
            p.wait()
        assert [kv.view(view) for view in views] == [value_of(k, 1 << 20) for k in keys]
        key = key_of("storm", rng.randrange(64))
        length = kv.call("CAIRN.LENGTH", key)
        if length:
            assert kv.fetch(key, length) in (None, value_of(key, length))
    for p in living:
        p.kill()
    until(lambda: shared(node)["processes"] == 1)
    told = shared(node)
    assert told["orphans"] == 0 and told["lease_pins"] == 4
    assert told["window_bytes"] == 4 << 20
    assert kv.call("CAIRN.CLEAR", "ALL") >= 4
    assert kv.call("CAIRN.RELEASE", mine) == 1
    until(lambda: state_free(node) > free)
    for i in range(40):
        key = key_of("after", i)
        assert kv.put(key, value_of(key, 1 << 20)) == [OK, 0]


def state_free(node):
    return json.loads(connect(node).call("CAIRN.STATS"))["ram"]["free_bytes"]


def test_a_client_that_leaves_in_the_middle(node):
    """Half a request, a request whose answer nobody reads, a close while a worker copies."""
    watcher = connect(node)
    for i in range(60):
        kv = connect(node)
        kv.attach(4 << 20)
        value = value_of(key_of("middle", i), 3 << 20)
        kv.window[:len(value)] = value
        item = put_item(key_of("middle", i), len(value), flags=(1 << 8) | 1)
        whole = request("CAIRN.PUT", 1000, item, checks(value), b"", b"")
        inline = request("CAIRN.PUT", 1000, put_item(key_of("inline", i), len(value)),
                         checks(value), b"", value)
        lease = request("CAIRN.LEASE", 1000, 1000, key_of("middle", i))
        got = request("CAIRN.GET", 1000, get_item(key_of("middle", 0), 3 << 20))
        kv.send([whole, inline[:200_000], whole + lease, whole + got * 5, inline[:100]][i % 5])
        kv.close()
        kv.unmap()
    assert watcher.call("PING") == "PONG"
    until(lambda: shared(node)["window_bytes"] == 0)
    for i in range(60):
        value = watcher.fetch(key_of("middle", i), 3 << 20)
        assert value in (None, value_of(key_of("middle", i), 3 << 20))
    # This process goes on, but cannot have read the answers that told of its leases.
    until(lambda: shared(node)["lease_pins"] == 0 and shared(node)["processes"] == 0)


@pytest.mark.parametrize("read", [False, True])
def test_only_leases_whose_answers_were_read_outlive_the_connection(node, read):
    held_chain(connect(node))
    kv = connect(node)
    kv.attach(0)
    kv.send(request("CAIRN.LEASE", 1000, 1000, key_of("held", 0)))
    until(lambda: shared(node)["lease_pins"] == 1)
    if read:
        assert kv.value()[0] > 0
    kv.close()
    other = connect(node)
    until(lambda: shared(node)["orphans"] == read and shared(node)["lease_pins"] == read)
    other.attach(0)
    assert other.call("CAIRN.RELEASE", "CLOSED") == read
