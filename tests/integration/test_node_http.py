"""The node's HTTP port from outside: metrics as a real Prometheus parser reads them, health that
goes red when nothing is stored, the state as JSON, and what careless or hostile visitors can do."""

import contextlib
import http.client
import json
import math
import os
import socket
import subprocess
import threading
import time

import pytest
from kv_client import Kv, key_of, value_of
from patience import STALL
from prometheus_client.parser import text_string_to_metric_families

MIB = 1 << 20
LENGTH = 100_000


def fetch(node, path, method="GET", **more):
    connection = http.client.HTTPConnection("127.0.0.1", node.http_port, timeout=20)
    try:
        connection.request(method, path, **more)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), dict(answer.getheaders())
    finally:
        connection.close()


class Metrics(dict):
    """(name, labels as sorted pairs) -> value of every sample."""

    def __init__(self, node):
        status, text, headers = fetch(node, "/metrics")
        assert status == 200
        assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        self.families = list(text_string_to_metric_families(text))
        self.text = text
        for family in self.families:
            for s in family.samples:
                at = (s.name, tuple(sorted(s.labels.items())))
                assert at not in self, f"twice: {at}"
                self[at] = s.value

    def of(self, name, **labels):
        return self[name, tuple(sorted(labels.items()))]


def moved(before, after, name, **labels):
    return after.of(name, **labels) - before.of(name, **labels)


@pytest.fixture
def disk_node(new_node):
    n = new_node()
    return n.start(f"--disk-path={n.place}", "--disk=64MiB")


def kv(node):
    return Kv(path=node.socket)


# --- metrics ---


def test_every_family_has_help_a_type_and_whole_samples(disk_node):
    m = Metrics(disk_node)
    names = [f.name for f in m.families]
    assert len(names) == len(set(names)) and len(names) > 60
    for family in m.families:
        assert family.documentation and family.samples, family
        assert family.type in ("counter", "gauge", "histogram"), family
        assert family.name.startswith(("cairn_", "process_")), family
        for s in family.samples:
            assert family.type != "counter" or s.name.endswith("_total"), s
            assert not math.isnan(s.value) and s.value >= 0, s
    assert m.text.endswith("\n") and "\r" not in m.text


WANTED = """
cairn_build_info cairn_healthy cairn_tier_state cairn_get_hits_total cairn_get_misses_total
cairn_puts_total cairn_put_refused_total cairn_lookups_total cairn_lookup_chunks_total
cairn_bytes_total cairn_evicted_chunks_total cairn_evicted_bytes_total cairn_commands_total
cairn_kv_tokens_hit_total cairn_kv_tokens_asked_total cairn_string_reads_total
cairn_deadline_misses_total cairn_checksum_mismatch_total cairn_header_mismatch_total
cairn_key_mismatch_total cairn_generation_mismatch_total cairn_window_rejects_total cairn_ram_bytes
cairn_ram_huge_share cairn_index_entries cairn_disk_bytes cairn_disk_engine_info
cairn_disk_direct_io cairn_disk_io_errors_total cairn_disk_lost_ios_total cairn_clients
cairn_connections_total cairn_connections_closed_total cairn_leases_active
cairn_oldest_lease_seconds cairn_leases_total cairn_index_recovered_chunks
cairn_restart_ready_seconds cairn_recovery_seconds cairn_last_success_age_seconds
cairn_chunks_dropped_total cairn_disk_in_flight cairn_quarantined_buffers cairn_auth_failures_total
cairn_handshake_timeouts_total cairn_protocol_errors_total
process_cpu_seconds_total process_resident_memory_bytes
process_open_fds process_max_fds process_start_time_seconds cairn_memlock_limit_bytes
""".split()


def test_what_operators_ask_for_is_there(disk_node):
    m = Metrics(disk_node)
    names = {name for name, _ in m}
    assert not [name for name in WANTED if name not in names]
    assert abs(m.of("process_start_time_seconds") - time.time()) < 60
    assert 64 * MIB < m.of("process_resident_memory_bytes") < 512 * MIB
    assert m.of("cairn_tier_state", tier="disk") == 0 and m.of("cairn_healthy") == 1
    assert m.of("cairn_ram_bytes", state="capacity") == 64 * MIB
    assert m.of("cairn_disk_bytes", state="capacity") == 64 * MIB


def test_histograms_are_cumulative_and_agree_with_their_counts(disk_node):
    with kv(disk_node) as c:
        for i in range(50):
            key = key_of("hist", i)
            c.put(key, value_of(key, LENGTH))
            assert c.fetch(key, LENGTH)
    m = Metrics(disk_node)
    family = next(f for f in m.families if f.name == "cairn_latency_seconds")
    series = {}
    for s in family.samples:
        labels = dict(s.labels)
        bound = labels.pop("le", None)
        series.setdefault(tuple(sorted(labels.items())), []).append((s.name, bound, s.value))
    assert (("op", "get"), ("tier", "ram")) in series and len(series) == 8
    for labels, samples in series.items():
        buckets = [(float(b), v) for name, b, v in samples if name.endswith("_bucket")]
        assert buckets == sorted(buckets), "bounds rise, and counts with them"
        assert all(a[1] <= b[1] for a, b in zip(buckets, buckets[1:])), labels
        assert buckets[-1][0] == math.inf
        count = m.of("cairn_latency_seconds_count", **dict(labels))
        assert buckets[-1][1] == count
        total = m.of("cairn_latency_seconds_sum", **dict(labels))
        assert (total > 0) == (count > 0)
    assert m.of("cairn_latency_seconds_count", tier="ram", op="get") >= 50
    assert m.of("cairn_latency_seconds_count", tier="ram", op="put") >= 50
    assert m.of("cairn_latency_seconds_count", tier="node", op="command") >= 100


def test_a_put_a_hit_and_a_miss_move_what_they_should(disk_node):
    key, other = key_of("moves"), key_of("absent")
    before = Metrics(disk_node)
    assert 0 < before.of("cairn_restart_ready_seconds") < 30 + STALL
    for tier, op in (("ram", "put"), ("ram", "get"), ("disk", "get"), ("disk", "store")):
        age = before.of("cairn_last_success_age_seconds", tier=tier, op=op)
        assert age > before.of("cairn_restart_ready_seconds"), "none yet: since the start"
    with kv(disk_node) as c:
        assert c.put(key, value_of(key, LENGTH))[0] == 0
        assert c.fetch(key, LENGTH) == value_of(key, LENGTH)
        assert c.fetch(other, LENGTH) is None
        assert c.lookup([key, other])[0] == 1
        assert c.call("CAIRN.FLUSH", 5000) == 0
        during = Metrics(disk_node)
    assert moved(before, during, "cairn_puts_total", result="stored") == 1
    assert moved(before, during, "cairn_bytes_total", tier="ram", op="put") == LENGTH
    assert moved(before, during, "cairn_get_hits_total", tier="ram") == 1
    assert moved(before, during, "cairn_get_misses_total", cause="absent") == 1
    assert moved(before, during, "cairn_lookup_chunks_total") == 2
    assert moved(before, during, "cairn_lookup_held_chunks_total") == 1
    assert moved(before, during, "cairn_disk_ops_total", op="store") == 1
    assert moved(before, during, "cairn_bytes_total", tier="disk", op="write") >= LENGTH
    assert moved(before, during, "cairn_latency_seconds_count", tier="ram", op="lookup") == 1
    never = during.of("cairn_last_success_age_seconds", tier="disk", op="get")
    for tier, op in (("ram", "put"), ("ram", "get"), ("disk", "store")):
        assert during.of("cairn_last_success_age_seconds", tier=tier, op=op) < never
    assert during.of("cairn_quarantined_buffers") == 0
    assert moved(before, during, "cairn_commands_total") >= 5
    assert moved(before, during, "cairn_network_bytes_total", direction="in") > LENGTH
    assert moved(before, during, "cairn_network_bytes_total", direction="out") > LENGTH
    assert during.of("cairn_clients") >= 1
    assert moved(before, during, "cairn_connections_total", result="accepted") >= 1


def test_a_hit_from_disk_is_counted_as_one(disk_node):
    key = key_of("cold")
    with kv(disk_node) as c:
        c.put(key, value_of(key, LENGTH))
    assert disk_node.stop() == 0
    disk_node.start(f"--disk-path={disk_node.place}", "--disk=64MiB")
    before = Metrics(disk_node)
    with kv(disk_node) as c:
        assert c.fetch(key, LENGTH) == value_of(key, LENGTH)
        assert c.fetch(key, LENGTH) == value_of(key, LENGTH)
    after = Metrics(disk_node)
    for tier in ("disk", "ram"):
        assert moved(before, after, "cairn_get_hits_total", tier=tier) == 1
        assert moved(before, after, "cairn_latency_seconds_count", tier=tier, op="get") == 1
    assert moved(before, after, "cairn_bytes_total", tier="ram", op="get") == 2 * LENGTH
    assert moved(before, after, "cairn_latency_seconds_count", tier="disk", op="load") == 1


def test_commands_are_counted_by_name_and_result(disk_node):
    """Also those that a worker answered, and errors wherever they were found."""
    with disk_node.connect() as s:
        for line in ("ECHO a", "echo b", "ECHO", "NOSUCH", "CAIRN.LENGTH x", "CAIRN.FLUSH 100",
                     "CAIRN.FLUSH x", "GET a", "SET a 1 NONSENSE"):
            s.sendall(line.encode() + b"\r\n")
            assert s.recv(4096)
    m = Metrics(disk_node)
    for command, ok, error in (("echo", 2, 1), ("(unknown)", 0, 1), ("cairn.length", 0, 1),
                               ("cairn.flush", 1, 1), ("get", 1, 0), ("set", 0, 1)):
        for result, count in (("ok", ok), ("error", error)):
            at = ("cairn_command_calls_total", (("command", command), ("result", result)))
            assert m.get(at, 0) == count, (command, result)
    assert m.of("cairn_command_errors_total") == 5


def test_strings_are_counted_apart(node):
    before = Metrics(node)
    r = node.redis()
    r.set("a", "1")
    assert r.get("a") == b"1" and r.get("b") is None
    after = Metrics(node)
    assert moved(before, after, "cairn_string_reads_total", result="hit") == 1
    assert moved(before, after, "cairn_string_reads_total", result="miss") == 1


def test_leases_show_with_their_age(node):
    key = key_of("leased")
    with kv(node) as c:
        c.put(key, value_of(key, LENGTH))
        lease, views = c.lease([key])
        assert lease and len(views) == 1
        time.sleep(0.3)
        m = Metrics(node)
        assert m.of("cairn_leases_active") == 1 and m.of("cairn_lease_pins") == 1
        assert 0.3 <= m.of("cairn_oldest_lease_seconds") < 30 + STALL
        assert m.of("cairn_ram_bytes", state="leased") >= LENGTH
        assert c.call("CAIRN.RELEASE", lease) == 1
    m = Metrics(node)
    assert m.of("cairn_leases_active") == 0 and m.of("cairn_oldest_lease_seconds") == 0
    assert m.of("cairn_leases_total", event="taken") == 1
    assert m.of("cairn_leases_total", event="released") == 1


def test_a_lease_that_ends_by_its_time_is_expired_and_one_of_a_client_that_went_is_lost(node):
    key = key_of("timed")
    with Kv(port=node.port) as c, Kv(port=node.port) as goes:
        c.put(key, value_of(key, LENGTH))
        assert c.lease([key], ttl=50)[0] and goes.lease([key], ttl=60_000)[0]
        goes.close()
        end = time.monotonic() + 20 + STALL
        while (m := Metrics(node)).of("cairn_leases_active"):
            assert time.monotonic() < end
            time.sleep(0.02)
    assert m.of("cairn_leases_total", event="taken") == 2
    assert m.of("cairn_leases_total", event="expired") == 1
    assert m.of("cairn_leases_total", event="lost") == 1


def test_why_values_went_is_counted(node):
    keys = [key_of("went", i) for i in range(5)]
    with kv(node) as c:
        for key in keys:
            assert c.put(key, value_of(key, LENGTH))[0] == 0
        assert c.call("CAIRN.DELETE", 5000, keys[0]) == [0]
        assert c.call("CAIRN.CLEAR", "ALL") == 4
    m = Metrics(node)
    assert m.of("cairn_chunks_dropped_total", reason="deleted") == 1
    assert m.of("cairn_chunks_dropped_total", reason="cleared") == 4


def test_damage_on_disk_is_counted_by_its_cause(disk_node):
    """One bit of the value's bytes in the log: a miss, and the checksum counter says so."""
    key = key_of("damaged")
    value = value_of(key, LENGTH)
    with kv(disk_node) as c:
        c.put(key, value)
        # Others behind it, so that its segment is closed and not taken for an unfinished one.
        for i in range(40):
            c.put(key_of("other", i), value_of(key_of("other", i), LENGTH))
        assert c.call("CAIRN.FLUSH", 5000) == 0
    assert disk_node.stop() == 0
    log = disk_node.place / "cairn.log"
    at = log.read_bytes().find(value[:4096])
    assert at > 0
    with open(log, "r+b") as f:
        f.seek(at + 1000)
        byte = f.read(1)[0]
        f.seek(at + 1000)
        f.write(bytes([byte ^ 1]))
        f.flush()
        os.fsync(f.fileno())
    disk_node.start(f"--disk-path={disk_node.place}", "--disk=64MiB")
    before = Metrics(disk_node)
    assert before.of("cairn_index_recovered_chunks") == 41
    with kv(disk_node) as c:
        assert c.fetch(key, LENGTH) is None
        why = c.call("CAIRN.WHYMISS", key)
        assert why[why.index(b"text") + 1] == b"payload bytes differ from their checksum"
    after = Metrics(disk_node)
    assert moved(before, after, "cairn_checksum_mismatch_total", tier="disk") >= 1
    assert moved(before, after, "cairn_checksum_mismatch_total", tier="ram") == 0
    assert moved(before, after, "cairn_chunks_dropped_total", reason="checksum") == 1
    assert moved(before, after, "cairn_get_misses_total", cause="checksum") == 1
    assert moved(before, after, "cairn_disk_read_retries_total") >= 1
    assert after.of("cairn_header_mismatch_total") == 0


# --- health ---


def test_healthz_is_green(node):
    status, text, _ = fetch(node, "/healthz")
    assert (status, text) == (200, "ok\n")


@pytest.fixture
def dying_disk(place):
    """A file system on a disk that has less room than it says: sooner or later writes fail."""
    if os.geteuid() != 0:
        pytest.skip("mounts need root")
    store, path = place / "store", place / "mounted"
    store.mkdir()
    path.mkdir()
    mounted = []
    try:
        for command in (["mount", "-t", "tmpfs", "-o", "size=24m", "none", store],
                        ["truncate", "-s", "160M", store / "image"],
                        ["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1",
                         "-O", "^has_journal", store / "image"],
                        ["mount", "-o", "loop", store / "image", path]):
            done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"cannot make such a disk here: {done.stderr.strip()}")
            if command[0] == "mount":
                mounted.append(command[-1])
        yield path
    finally:
        for one in reversed(mounted):
            subprocess.run(["umount", "-l", one], check=False)


def test_healthz_goes_red_when_the_disk_is_off(new_node, dying_disk):
    n = new_node().start(f"--disk-path={dying_disk}", "--disk=96MiB")
    end = time.monotonic() + 60 + STALL
    with kv(n) as c:
        for i in range(10_000):
            key = key_of("dying", i)
            c.put(key, value_of(key, MIB))
            status, text, _ = fetch(n, "/healthz")
            if status == 503:
                break
            assert (status, text) == (200, "ok\n")
            assert time.monotonic() < end, "the disk never failed"
        assert "the disk tier is off" in text and text.count("\n") == 1
        m = Metrics(n)
        assert m.of("cairn_healthy") == 0
        assert m.of("cairn_tier_state", tier="disk") == 2
        assert m.of("cairn_disk_io_errors_total") > 0
        # It goes on from memory, and goes on saying so.
        key = key_of("after")
        assert c.put(key, value_of(key, LENGTH))[0] == 0
        assert c.fetch(key, LENGTH) == value_of(key, LENGTH)
    assert fetch(n, "/healthz")[0] == 503
    state = json.loads(fetch(n, "/debug/state")[1])
    assert state["healthy"] is False and "disk tier is off" in state["why"]
    assert [t["state"] for t in state["tiers"]] == ["ok", "off"]


def test_healthz_goes_red_when_every_put_is_refused(node):
    """Every other value is leased, so that nothing can be moved out of the way of a larger one."""
    small = [key_of("small", i) for i in range(126)]
    with kv(node) as c:
        for key in small:
            assert c.put(key, value_of(key, MIB // 2))[0] == 0
        leases = [c.lease([key])[0] for key in small[::2]]
        assert fetch(node, "/healthz")[0] == 200
        refused = 0
        for i in range(30):
            key = key_of("large", i)
            refused += c.put(key, value_of(key, 4 * MIB))[0] == -11
        assert refused == 30
        status, text, _ = fetch(node, "/healthz")
        assert status == 503 and "every put is refused, 30 since one was stored" in text
        assert Metrics(node).of("cairn_put_refused_total", cause="no_room") == 30
        assert c.call("CAIRN.RELEASE", *[lease for lease in leases if lease]) > 0
        key = key_of("again")
        assert c.put(key, value_of(key, 4 * MIB))[0] == 0
    assert fetch(node, "/healthz")[:2] == (200, "ok\n")


# --- state ---


def test_state_is_complete_json(disk_node):
    key = key_of("state")
    with kv(disk_node) as c:
        assert c.call("CLIENT", "SETNAME", "watched") == "OK"
        c.put(key, value_of(key, LENGTH))
        c.lease([key])
        status, text, headers = fetch(disk_node, "/debug/state")
    assert status == 200 and headers["Content-Type"] == "application/json"
    state = json.loads(text)
    assert state["healthy"] is True and state["why"] == "" and state["stopping"] is False
    assert state["options"]["ram"] == "64MiB" and len(state["options"]) > 20
    assert [t["name"] for t in state["tiers"]] == ["ram", "disk"]
    assert state["tiers"][0]["values"] == 1 and state["tiers"][1]["segments"] > 0
    assert state["clients_count"] == state["clients_shown"] == 1
    client = state["clients"][0]
    assert client["name"] == "watched" and client["pid"] == os.getpid()
    assert client["command"] == "CAIRN.LEASE" and client["idle_s"] < 20 + STALL
    assert state["leases_count"] == 1 and state["leases"][0]["client"] == client["id"]
    assert state["leases"][0]["values"] == 1 and state["leases"][0]["bytes"] >= LENGTH
    assert state["oldest_lease_s"] == pytest.approx(state["leases"][0]["age_s"], abs=STALL)
    assert state["workers"]["count"] == 4 and state["network_threads"] >= 1
    assert state["queues"] == {"prefetch": 0, "workers": 0}
    assert state["index"]["entries"] == 1 and len(state["run_id"]) == 40


def test_state_of_many_clients_is_bounded(node):
    clients = [node.connect(tcp=True) for _ in range(1200)]
    try:
        end = time.monotonic() + 20 + STALL
        while (state := json.loads(fetch(node, "/debug/state")[1]))["clients_count"] < 1200:
            assert time.monotonic() < end
        assert state["clients_shown"] == len(state["clients"]) == 1000
    finally:
        for c in clients:
            c.close()


# --- visitors ---


def test_index_and_what_is_not_there(node):
    assert "/metrics" in fetch(node, "/")[1]
    for path in ("/metric", "/metrics/", "//", "/../etc/passwd", "/" + "a" * 4000):
        assert fetch(node, path)[0] == 404
    assert fetch(node, "/" + "a" * 60000)[0] in (400, 413, 414, 431)


def test_only_get_and_head(node):
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "BREW"):
        status, _, headers = fetch(node, "/metrics", method)
        assert status == 405 and headers["Allow"] == "GET, HEAD"
    status, text, headers = fetch(node, "/metrics", "HEAD")
    assert status == 200 and text == "" and int(headers["Content-Length"]) > 1000
    status, _, _ = fetch(node, "/metrics", "POST", body=b"x" * 100)
    assert status == 405


def test_query_strings_do_no_harm(node):
    assert fetch(node, "/healthz?verbose=1")[0] == 200


def test_bound_to_loopback_only(node):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect(("192.0.2.1", 9))
            outside = s.getsockname()[0]
        except OSError:
            pytest.skip("no other address here")
    with pytest.raises(OSError):
        socket.create_connection((outside, node.http_port), 2).close()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("dripping", [False, True])
def test_visitors_that_dawdle_cannot_hold_it(node, dripping):
    """More than it takes at a time, who say nothing or drip. All are gone in about 10 s, those that
    it could not even take in as much again."""
    visitors = [socket.create_connection(("127.0.0.1", node.http_port)) for _ in range(40)]
    stop = threading.Event()

    def drip():
        while not stop.wait(0.5):
            for v in visitors:
                with contextlib.suppress(OSError):
                    v.send(b"G")

    if dripping:
        threading.Thread(target=drip, daemon=True).start()
    start = time.monotonic()
    try:
        connection = http.client.HTTPConnection("127.0.0.1", node.http_port, timeout=40 + STALL)
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
        connection.close()
        assert 1 < time.monotonic() - start < 30 + STALL
    finally:
        stop.set()
        for v in visitors:
            v.close()
    assert fetch(node, "/healthz")[0] == 200


def test_a_port_in_use_is_refused_in_a_sentence(new_node, node):
    other = new_node()
    other.start(f"--http-port={node.http_port}", wait=False)
    assert other.process.wait(30) == 1
    assert f"port {node.http_port}" in other.said() and "--http-port" in other.said()


def test_without_a_port_there_is_none(new_node):
    n = new_node().start("--http-port=0")
    assert "http://" not in n.said()
