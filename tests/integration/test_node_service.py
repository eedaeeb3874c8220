"""cairnd as a service: readiness, signals, draining, the systemd unit and the sample file."""

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import threading
import time
import urllib.request

import pytest

from kv_client import Kv, key_of, value_of
from patience import STALL


def wait_for_text(file, text: str) -> None:
    """`text` is a regular expression."""
    end = time.monotonic() + 10 + STALL
    while not file.exists() or not re.search(text, file.read_text(errors="replace")):
        assert time.monotonic() < end
        time.sleep(0.02)


def listener(address: str) -> socket.socket:
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.bind("\0" + address[1:] if address.startswith("@") else address)
    s.settimeout(30)
    return s


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_hears_of_start_and_end(new_node, abstract):
    node = new_node()
    address = f"@cairn-test-{os.getpid()}" if abstract else str(node.place / "notify")
    with listener(address) as s:
        node.start(env={"NOTIFY_SOCKET": address}, wait=False)
        assert s.recv(100) == b"READY=1"
        with node.connect() as c:  # ready means ready
            c.sendall(b"PING\r\n")
            assert c.recv(10) == b"+PONG\r\n"
        node.process.send_signal(signal.SIGTERM)
        assert s.recv(100) == b"STOPPING=1"
        assert node.process.wait(20 + STALL) == 0


def test_the_watchdog_is_fed(new_node):
    node = new_node()
    with listener(str(node.place / "notify")) as s:
        node.start(env={"NOTIFY_SOCKET": str(node.place / "notify"), "WATCHDOG_USEC": "300000"})
        got = [s.recv(100) for _ in range(5)]
    assert got[0] == b"READY=1" and set(got[1:]) == {b"WATCHDOG=1"}


def test_no_watchdog_of_another_process(new_node):
    node = new_node()
    with listener(str(node.place / "notify")) as s:
        node.start(env={"NOTIFY_SOCKET": str(node.place / "notify"), "WATCHDOG_USEC": "100000",
                        "WATCHDOG_PID": "1"})
        assert s.recv(100) == b"READY=1"
        s.settimeout(0.5)
        with pytest.raises(TimeoutError):
            s.recv(100)


def test_a_notify_socket_that_is_not_there_is_no_matter(new_node):
    node = new_node().start(env={"NOTIFY_SOCKET": "/nonexistent/notify"})
    assert node.stop() == 0


def test_the_unit_is_valid(root, cairnd, place):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is missing: apt-get install systemd")
    text = (root / "deploy/cairnd.service").read_text()
    assert "Type=notify" in text
    unit = place / "cairnd.service"
    unit.write_text(text.replace("/usr/bin/cairnd", str(cairnd)))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr
    done = subprocess.run(["systemd-analyze", "security", "--offline=true", str(unit)],
                          capture_output=True, text=True, timeout=60)
    exposure = re.search(r"exposure level for cairnd.service: ([\d.]+)", done.stdout)
    assert exposure and float(exposure[1]) < 2.5, done.stdout


def allowed_calls(unit_text: str) -> set[str]:
    """The system calls that the unit's filters leave, by what this systemd knows of groups."""
    groups: dict[str, set[str]] = {}
    text = subprocess.run(["systemd-analyze", "syscall-filter", "--no-pager"], capture_output=True,
                          text=True, timeout=60).stdout
    for line in text.splitlines():
        if line.startswith("@"):
            current = groups.setdefault(line.strip(), set())
        elif line.strip() and not line.strip().startswith("#") and line.startswith(" "):
            current.add(line.strip())

    def calls(name):
        if not name.startswith("@"):
            return {name}
        return set().union(*(calls(n) for n in groups.get(name, ())))

    allowed = calls("@default")
    for line in re.findall(r"^SystemCallFilter=(.*)$", unit_text, re.MULTILINE):
        names = set().union(*(calls(n) for n in line.lstrip("~").split()))
        allowed = allowed - names if line.startswith("~") else allowed | names
    return allowed


def test_the_unit_allows_what_the_node_calls(root, cairnd, new_node):
    if not shutil.which("systemd-analyze") or not shutil.which("strace"):
        pytest.skip("systemd-analyze or strace is missing: apt-get install systemd strace")
    if b"__asan_init" in cairnd.read_bytes() or b"__tsan_init" in cairnd.read_bytes():
        pytest.skip("a sanitizer makes calls of its own")
    node = new_node()
    trace = node.place / "trace"
    folder = node.place / "disk"
    folder.mkdir()
    wrapper = node.place / "cairnd"
    wrapper.write_text(f"#!/bin/sh\nexec strace -D -f -q -o {trace} {node.program} \"$@\"\n")
    wrapper.chmod(0o755)
    node.program = wrapper
    node.start("--disk=64MiB", f"--disk-path={folder}", timeout=60)
    r = node.redis()
    for i in range(100):
        r.set(f"k{i}", b"x" * 1000000)
    r.get("k0")
    kv = Kv(path=node.socket)
    kv.attach(1 << 20)
    key = key_of("chunk")
    kv.put(key, value_of(key, 100000))
    kv.lease([key])
    kv.unmap()
    urllib.request.urlopen(f"http://127.0.0.1:{node.http_port}/metrics", timeout=20).read()
    r.config_set("spin", "0")
    r.flushall()
    assert node.stop(60) == 0
    # strace pads numbers of fewer than five digits.
    wait_for_text(trace, rf"(?m)^{node.process.pid} +\+\+\+ exited with 0")
    used = set(re.findall(r"^\d+ +(\w+)\(", trace.read_text(errors="replace"), re.MULTILINE))
    assert "io_uring_enter" in used or "pwritev2" in used
    # Made by strace's own start of the program.
    assert not used - allowed_calls((root / "deploy/cairnd.service").read_text()) - {"execve"}


def test_the_sample_file_is_the_documentation_it_says(root, cairnd):
    sample = root / "deploy/cairnd.conf.example"
    done = subprocess.run([str(cairnd), f"--config={sample}", "--print-config"],
                          capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    defaults = subprocess.run([str(cairnd), "--config=", "--disk-path=/var/cache/cairn",
                               "--print-config"], capture_output=True, text=True, timeout=30)
    assert done.stdout == defaults.stdout


def test_deploy_run_starts_one(root, cairnd, new_node):
    if cairnd != root / "build/bin/cairnd":
        pytest.skip("the node under test is not the one that deploy/run builds")
    node = new_node()
    node.program = node.place / "run"
    node.program.write_text(f"#!/bin/sh\nexec {root}/deploy/run node \"$@\"\n")
    node.program.chmod(0o755)
    node.start("--config=", f"--disk-path={node.place}", "--disk=64MiB", timeout=500)
    assert "64 MiB of memory and 64 MiB of disk" in node.said()
    assert f"ready on tcp://127.0.0.1:{node.port}" in node.said()
    assert node.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(node, number):
    assert stat.S_IMODE(os.stat(node.socket).st_mode) == 0o600
    with node.connect() as s:
        s.sendall(b"PING\r\n")
        assert s.recv(10) == b"+PONG\r\n"
        node.process.send_signal(number)
        assert s.recv(10) == b""
    assert node.process.wait(20) == 0
    assert not os.path.exists(node.socket)
    assert "stopping" in node.said() and "stopped" in node.said()


def test_shutdown_is_a_signal(node):
    with node.connect() as s:
        s.sendall(b"SHUTDOWN NOSAVE\r\n")
        assert s.recv(10) == b""
    assert node.process.wait(20) == 0


def test_what_was_asked_is_answered_before_the_end(node):
    """Replies that are queued when the signal comes still reach a client that takes them."""
    value = b"v" * (4 << 20)
    node.redis().set("big", value)
    with node.connect() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        s.sendall(b"GET big\r\n")
        got = s.recv(10)
        node.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        while more := s.recv(1 << 20):
            got += more
    assert got == b"$%d\r\n%s\r\n" % (len(value), value)
    assert node.process.wait(20) == 0


def test_a_client_that_takes_nothing_does_not_hold_up_the_end(node):
    node.redis().set("big", b"v" * (8 << 20))
    with node.connect() as s:
        s.sendall(b"GET big\r\n")
        s.recv(10)
        start = time.monotonic()
        assert node.stop() == 0
        assert 4 < time.monotonic() - start < 8 + STALL


def test_a_second_signal_ends_it_at_once(new_node):
    # Threads that nobody joins are the point here.
    node = new_node().start(env={"TSAN_OPTIONS": "report_thread_leaks=0"})
    node.redis().set("big", b"v" * (8 << 20))
    with node.connect() as s:
        s.sendall(b"GET big\r\n")
        s.recv(10)
        start = time.monotonic()
        node.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert node.process.poll() is None
        node.process.send_signal(signal.SIGTERM)
        assert node.process.wait(20 + STALL) != 0
        assert time.monotonic() - start < 3 + STALL


def test_ending_under_load_loses_nothing_acknowledged(new_node):
    """Strings that were +OK before the signal are there after the restart: what is dirty is
    written."""
    node = new_node()
    folder = node.place / "disk"
    folder.mkdir()
    options = ["--disk=256MiB", f"--disk-path={folder}"]
    node.start(*options)
    known: dict[int, bytes] = {}

    def load(part):
        r = node.redis(retry=None)
        for i in range(part, 4000, 4):  # all of it fits into memory
            value = os.urandom(1000 + i % 3000)
            try:
                r.set(f"k{i}", value)
            except Exception:
                return
            known[i] = value

    threads = [threading.Thread(target=load, args=(part,)) for part in range(4)]
    for t in threads:
        t.start()
    end = time.monotonic() + 30 + STALL
    while len(known) < 500 and time.monotonic() < end:
        time.sleep(0.01)
    assert node.stop() == 0
    for t in threads:
        t.join(30)
    assert len(known) >= 500
    node.start(*options)
    r = node.redis()
    for i, value in known.items():
        assert r.get(f"k{i}") == value


def test_the_log_file_is_opened_again(new_node):
    node = new_node()
    log = node.place / "c.log"
    node.start(f"--log-file={log}")
    wait_for_text(log, "ready on")
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    log.rename(node.place / "c.log.1")
    node.process.send_signal(signal.SIGHUP)
    wait_for_text(log, "open again")
    assert node.stop() == 0
    assert "stopped" in log.read_text()


def test_it_refuses_what_another_has(new_node):
    one = new_node().start()
    two = new_node()
    for option, parts in [
        (f"--port={one.port}", [str(one.port)]),
        (f"--socket={one.socket}", [one.socket]),
        (f"--http-port={one.http_port}", [str(one.http_port)]),
        ("--log-file=/nonexistent/x", ["log file '/nonexistent/x'", "--log-file"]),
        ("--socket=/nonexistent/dir/x.sock", ["/nonexistent/dir/x.sock"]),
        ("--ram=15TiB", ["ram"]),
    ]:
        two.port = two.http_port = 0
        two.log.unlink(missing_ok=True)
        two.start(option, wait=False)
        assert two.process.wait(30) == 1, option
        lines = [line for line in two.said().splitlines() if " info: " not in line]
        assert len(lines) == 1 and all(part in lines[0].lower() for part in parts), lines
        assert not os.path.exists(two.place / "node.sock")
        two.socket = str(two.place / "node.sock")
    with one.connect() as s:
        s.sendall(b"PING\r\n")
        assert s.recv(10) == b"+PONG\r\n"


def test_the_log_of_a_store_has_one_owner(new_node):
    one, two = new_node(), new_node()
    options = ["--disk=64MiB", f"--disk-path={one.place}/x.log"]
    one.start(*options)
    two.start(*options, wait=False)
    assert two.process.wait(60) == 1
    assert "x.log" in two.said()


def test_a_socket_left_by_a_killed_node_is_replaced(new_node):
    node = new_node().start()
    node.kill()
    assert os.path.exists(node.socket)
    node.start()
    assert node.stop() == 0


def test_no_tcp_and_no_socket(new_node):
    node = new_node().start("--port=0", "--http-port=0")
    with node.connect() as s:
        s.sendall(b"PING\r\n")
        assert s.recv(10) == b"+PONG\r\n"
    assert "tcp://" not in node.said() and "metrics" not in node.said()
    other = new_node()
    other.socket = ""
    other.start("--socket=")
    with other.connect(tcp=True) as s:
        s.sendall(b"PING\r\n")
        assert s.recv(10) == b"+PONG\r\n"


def processor_seconds(pid: int) -> float:
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_idle_costs_nothing(new_node):
    node = new_node().start("--threads=2")
    clients = [node.connect() for _ in range(50)]
    for s in clients:
        s.sendall(b"PING\r\n")
        assert s.recv(10) == b"+PONG\r\n"
    before = processor_seconds(node.process.pid)
    time.sleep(3)
    assert processor_seconds(node.process.pid) - before <= 0.15
    for s in clients:
        s.close()
