"""The `cairn` program from outside: subcommands, their JSON, what is said on refusal."""

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import cairn as cairn_package
from gpu_engine import DRIVER

ROOT = Path(__file__).resolve().parents[2]
IDENTITY = "model=smollm2,chunk_tokens=4,kv_dtype=bfloat16"
SMALL = "ram=64MiB&disk=64MiB"


@pytest.fixture(scope="session")
def program() -> str:
    path = Path(os.environ.get("CAIRN_BIN", ROOT / "build/bin/cairn"))
    assert path.is_file(), f"{path} is missing: run deploy/run build first"
    return str(path)


@pytest.fixture
def cairn(program):
    def run(*args, stdin=b"", env=None):
        return subprocess.run(
            [program, *map(str, args)],
            input=stdin,
            capture_output=True,
            timeout=120,
            env={**os.environ, **(env or {})},
        )

    return run


@pytest.fixture
def uri(place):
    return f"embedded://{place}?{SMALL}"


def key_of(n: int) -> str:
    return hashlib.sha256(b"%d" % n).hexdigest()


def value_of(n: int, size: int) -> bytes:
    return random.Random(n).randbytes(size)


def refused(done, status, *words):
    """One sentence on standard error that names the input and the fix, nothing on standard out."""
    text = done.stderr.decode()
    assert done.returncode == status, text
    assert text.startswith("cairn: ") and text.count("\n") == 1, text
    for word in words:
        assert word in text, text


def put(cairn, uri, place, n, size, *more):
    path = place / f"value-{n}"
    path.write_bytes(value_of(n, size))
    done = cairn("put", "--store", uri, *more, key_of(n), path)
    assert done.returncode == 0, done.stderr.decode()
    return done


# --- the frame ---


def test_help_of_the_program_and_of_each_command(cairn):
    text = cairn("--help").stdout.decode()
    for name in ["features", "doctor", "keys", "put", "get", "stat", "why", "fsck", "bench", "ping",
                 "info", "top", "lookup", "why-miss", "clear", "pin", "unpin", "config"]:
        assert f"\n  {name} " in text
        done = cairn(name, "--help")
        assert done.returncode == 0
        assert done.stdout.decode().startswith(f"usage: cairn {name} ")


def test_version(cairn):
    done = cairn("--version")
    assert done.returncode == 0
    assert done.stdout.decode().split()[0] == "cairn"


def test_without_a_command_it_says_how(cairn):
    done = cairn()
    assert done.returncode == 2
    assert b"usage: cairn COMMAND" in done.stderr


@pytest.mark.parametrize(
    "args, words",
    [
        (["fetures"], ["'fetures'", "did you mean 'features'"]),
        (["qqqqqqqq"], ["'qqqqqqqq'", "cairn --help"]),
        (["stat", "--stor", "x"], ["'--stor'", "did you mean '--store'"]),
        (["features", "--json=maybe"], ["json", "maybe"]),
        (["keys", "--identity"], ["'--identity'", "needs a value"]),
        (["put", key_of(1)], ["too few arguments", "KEYHEX FILE"]),
        (["fsck", "a", "b"], ["'b'", "one argument too many"]),
        (["get", "-x"], ["'-x'", "cairn get --help"]),
        (["get", "--store", "embedded:///tmp", "abc"], ["'abc'", "64 hexadecimal digits"]),
        (["get", key_of(1)], ["--store"]),
        (["stat", "--store", "embeded:///x"], ["embeded:///x", "embedded:///path"]),
        (["stat", "--store", "embedded:?ram=64MiB"], ["names no log"]),
        (["why", "--store", "embedded:///tmp"], ["--identity"]),
        (["keys", "-"], ["--identity"]),
        (["bench", "dsk"], ["'dsk'", "did you mean 'disk'"]),
        (["bench", "ram", "--size", "3MiB"], ["power of two"]),
        (["bench", "ram", "--size", "1KiB"], ["size"]),
        (["bench", "disk", "--path", "/no/such/place"], ["/no/such/place", "--path"]),
        (["bench", "replay"], ["trace"]),
        (["bench", "engin"], ["'engin'", "did you mean 'engine'"]),
        (["bench", "--check", "engine"], ["'engine'", "cairn bench engine --help"]),
        (["bench", "engine", *["warm"] * 65], ["65 arguments", "at most 64"]),
    ],
)
def test_wrong_usage_names_the_input_and_the_fix(cairn, args, words):
    refused(cairn(*args), 2, *words)


# --- features ---


def test_features_json(cairn, place):
    got = json.loads(cairn("features", "--json", place).stdout)
    assert got["cpu"]["count"] == os.cpu_count()
    assert got["memory"]["page_bytes"] == os.sysconf("SC_PAGESIZE")
    assert got["copy"]["variant"] in got["copy"]["can_run"]
    engines = {e["name"]: e for e in got["io"]["engines"]}
    assert engines["pool"]["can_run"] and got["io"]["engine"] in engines
    assert all(e["can_run"] or e["why_not"] for e in engines.values())
    assert got["path"]["exists"] and got["path"]["writable"]
    assert got["path"]["o_direct"] or got["path"]["o_direct_why_not"]


def test_features_of_a_path_that_is_not_there(cairn):
    got = json.loads(cairn("features", "--json", "/no/such/path").stdout)
    assert got["path"]["exists"] is False and got["path"]["why_not"]


def test_features_text_has_the_same_answers(cairn):
    lines = [line.split() for line in cairn("features").stdout.decode().splitlines()]
    assert ["io.engine", "uring"] in lines or ["io.engine", "pool"] in lines


# --- keys ---


def keys_of(cairn, tokens, *more, identity=IDENTITY, env=None):
    done = cairn("keys", "--identity", identity, *more, "-", stdin=tokens, env=env)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().split()


def test_keys_are_the_specification(cairn, place):
    """chunking/vectors.json was made by a second implementation in Python."""
    vectors = json.loads((ROOT / "chunking/vectors.json").read_text())
    fields = {i["name"]: i["fields"] for i in vectors["identities"]}
    path, checked = place / "identity", 0
    for v in vectors["vectors"]:
        identity = fields[v["identity"]]
        if v["extras"] or not isinstance(v.get("tokens"), list) or not v["keys"]:
            continue
        if len(v["keys"]) != v["count"] or any("\n" in x for x in identity.values()):
            continue
        path.write_text("".join(f"{name}={value}\n" for name, value in identity.items()))
        args = ["keys", "--identity-file", path]
        if v["parent"]:
            args += ["--parent", v["parent"]]
        secret = v["domain"].get("key")
        if secret is not None and not isinstance(secret, str):
            continue
        env = {"CAIRN_DOMAIN_KEY": secret} if secret else None
        done = cairn(*args, "-", stdin=" ".join(map(str, v["tokens"])).encode(), env=env)
        assert done.stdout.decode().split() == v["keys"], (v["name"], done.stderr)
        checked += 1
    assert checked >= 10


def test_keys_take_text_lists_and_binary_alike(cairn):
    want = keys_of(cairn, b"1 2 3 4 5 6 7 8 9")
    assert len(want) == 3
    assert keys_of(cairn, b"[1, 2, 3,\n4,5,6,7,8,9]") == want
    binary = b"".join(n.to_bytes(4, "little") for n in range(1, 10))
    assert keys_of(cairn, binary, "--binary") == want
    got = json.loads("".join(keys_of(cairn, b"1 2 3 4 5 6 7 8 9", "--json")))
    assert got["keys"] == want and got["chunk_tokens"] == 4 and len(got["fingerprint"]) == 64


def test_keys_chain_and_separate(cairn, place):
    whole = keys_of(cairn, b"1 2 3 4 5 6 7 8")
    assert keys_of(cairn, b"5 6 7 8", "--parent", whole[0]) == [whole[1]]
    assert keys_of(cairn, b"1 2 3 4", identity=IDENTITY + ",lora=a") != whole[:1]
    secret = place / "domain"
    secret.write_text("00ff" * 8 + "\n")
    private = keys_of(cairn, b"1 2 3 4", "--domain-file", secret)
    assert private != whole[:1]
    assert keys_of(cairn, b"1 2 3 4", env={"CAIRN_DOMAIN_KEY": "00ff" * 8}) == private


def test_identity_from_a_file(cairn, place):
    path = place / "identity"
    path.write_text(IDENTITY.replace(",", "\n") + "\n")
    done = cairn("keys", "--identity-file", path, "-", stdin=b"1 2 3 4")
    assert done.stdout.decode().split() == keys_of(cairn, b"1 2 3 4")


def test_keys_refuse_what_they_cannot_read(cairn, place):
    refused(cairn("keys", "--identity", IDENTITY, "-", stdin=b"1 2 x3"), 2, "'x3'", "token id")
    refused(cairn("keys", "--identity", IDENTITY, "-", stdin=b"4294967296"), 2, "4294967296")
    refused(cairn("keys", "--identity", IDENTITY, "-", stdin=b"-1"), 2, "'-1'")
    refused(cairn("keys", "--identity", "model", "-"), 2, "'model'", "name=value")
    refused(cairn("keys", "--identity", "model=x", "-"), 2, "chunk_tokens")
    refused(cairn("keys", "--identity", IDENTITY, "--binary", "-", stdin=b"12345"), 2, "5 bytes")
    refused(cairn("keys", "--identity", IDENTITY, "--domain", "mine", "-"), 2, "'mine'", "public")
    done = cairn("keys", "--identity", IDENTITY, place / "nothing")
    assert done.returncode != 0 and b"nothing" in done.stderr


def test_a_secret_is_never_echoed(cairn, place):
    path = place / "domain"
    path.write_text("sw0rdfish")
    done = cairn("keys", "--identity", IDENTITY, "--domain-file", path, "-", stdin=b"1 2 3 4")
    refused(done, 2, str(path), "hexadecimal")
    assert b"sw0rdfish" not in done.stderr + done.stdout
    done = cairn(
        "keys", "--identity", IDENTITY, "-", stdin=b"1", env={"CAIRN_DOMAIN_KEY": "sw0rdfish"}
    )
    refused(done, 2, "CAIRN_DOMAIN_KEY", "hexadecimal")
    assert b"sw0rdfish" not in done.stderr + done.stdout


# --- put, get, stat, why ---


def test_a_value_comes_back_from_another_process(cairn, uri, place):
    put(cairn, uri, place, 1, 300_001)
    done = cairn("get", "--store", uri, key_of(1))
    assert done.returncode == 0 and done.stdout == value_of(1, 300_001)
    out = place / "out"
    assert cairn("get", "--store", uri, key_of(1), "-o", out).returncode == 0
    assert out.read_bytes() == value_of(1, 300_001)
    assert out.stat().st_mode & 0o777 == 0o600
    got = json.loads(cairn("get", "--json", "--store", uri, key_of(1)).stdout)
    assert got["bytes"] == 300_001 and got["key"] == key_of(1)


def test_put_keeps_unless_told_to_replace(cairn, uri, place):
    put(cairn, uri, place, 1, 5000)
    other = place / "other"
    other.write_bytes(b"other")
    done = cairn("put", "--store", uri, key_of(1), other)
    assert done.returncode == 0 and b"kept" in done.stdout
    assert cairn("get", "--store", uri, key_of(1)).stdout == value_of(1, 5000)
    done = cairn("put", "--replace", "--store", uri, key_of(1), other)
    assert done.returncode == 0 and b"stored" in done.stdout
    assert cairn("get", "--store", uri, key_of(1)).stdout == b"other"


def test_put_from_standard_input(cairn, uri):
    done = cairn("put", "--store", uri, key_of(3), "-", stdin=b"from a pipe")
    assert done.returncode == 0
    assert cairn("get", "--store", uri, key_of(3)).stdout == b"from a pipe"


def test_stat_json_counts_what_is_there(cairn, uri, place):
    for n in range(3):
        put(cairn, uri, place, n, 10_000)
    got = json.loads(cairn("stat", "--json", "--store", uri).stdout)
    assert got["index"]["entries"] == 3
    assert got["disk"]["recovered_records"] == 3
    text = cairn("stat", "--store", uri).stdout.decode()
    assert any(line.split() == ["index.entries", "3"] for line in text.splitlines())


def test_why_names_the_field_that_differs(cairn, uri, place):
    put(cairn, uri, place, 1, 100, "--identity", IDENTITY)
    other = IDENTITY.replace("bfloat16", "fp8_e4m3")
    done = cairn("why", "--json", "--store", uri, "--identity", other)
    assert done.returncode == 0, done.stderr.decode()
    json.loads(done.stdout)
    text = done.stdout.decode()
    assert "kv_dtype" in text and "bfloat16" in text and "fp8_e4m3" in text
    assert b"kv_dtype" in cairn("why", "--store", uri, "--identity", other).stdout


def test_refusals_of_the_store_commands(cairn, uri, place):
    refused(cairn("get", "--store", uri, key_of(1)), 1, str(place), "no log")
    refused(cairn("stat", "--store", uri), 1, str(place), "no log")
    put(cairn, uri, place, 1, 100)
    refused(cairn("get", "--store", uri, key_of(2)), 1, key_of(2)[:16], "not held")
    refused(cairn("get", "--store", uri + "&polcy=lru", key_of(1)), 2, "polcy", "policy")
    refused(cairn("put", "--store", uri, key_of(2), "-", stdin=b""), 1, "empty")
    refused(cairn("put", "--store", uri, key_of(2), place / "nope"), 1, "nope")
    refused(
        cairn("put", "--store", "embedded:?ram=64MiB", key_of(2), "-", stdin=b"x"), 1, "no disk"
    )
    done = cairn("put", "--store", uri, key_of(2), "-", stdin=b"x" * (33 << 20))
    refused(done, 1, key_of(2)[:16], "not stored", str(33 << 20), "largest", "ram=")
    refused(cairn("put", "--store", uri, "0" * 64, "-", stdin=b"x"), 2, "zeros")
    refused(cairn("put", "--store", uri, "00", "-", stdin=b"x"), 2, "'00'", "64 hexadecimal")
    done = cairn("get", "--store", uri, key_of(1), "-o", place / "no" / "dir")
    refused(done, 1, "no/dir", "writable")


def test_a_reading_command_makes_no_log(cairn, place):
    cairn("stat", "--store", f"embedded://{place}/fresh.log")
    assert not (place / "fresh.log").exists()


# --- fsck ---


def fsck(cairn, path, *more):
    done = cairn("fsck", "--json", "--quiet", *more, path)
    lines = done.stdout.decode().splitlines()
    return done, json.loads(lines[-1]), [json.loads(line) for line in lines[:-1]]


def test_fsck_of_a_good_log(cairn, uri, place):
    for n in range(5):
        put(cairn, uri, place, n, 50_000 + n)
    log = place / "cairn.log"
    before = hashlib.sha256(log.read_bytes()).digest()
    done, report, _ = fsck(cairn, log)
    assert done.returncode == 0, done.stderr.decode()
    assert report["ok"] and report["records"] == 5
    assert report["payload_bytes"] == sum(50_000 + n for n in range(5))
    done, report, dump = fsck(cairn, place, "--dump")
    assert done.returncode == 0 and report["records"] == 5
    text = "\n".join(json.dumps(line) for line in dump)
    assert len(dump) >= 7
    for n in range(5):
        assert key_of(n)[:16] in text
    assert hashlib.sha256(log.read_bytes()).digest() == before


def test_fsck_reports_progress_on_standard_error(cairn, uri, place):
    put(cairn, uri, place, 1, 1000)
    done = cairn("fsck", place)
    assert done.returncode == 0 and b"100 %" in done.stderr
    assert b"records" in done.stdout


@pytest.mark.parametrize("n", [0, 2], ids=["first", "last"])
@pytest.mark.parametrize("what", ["payload", "header"])
def test_fsck_finds_one_flipped_byte(cairn, uri, place, what, n):
    size = 50_000
    for i in range(3):
        put(cairn, uri, place, i, size)
    log = place / "cairn.log"
    data = bytearray(log.read_bytes())
    at = data.find(value_of(n, size)[:64])
    assert at > 0 and at % 4096 == 0
    at += size // 2 if what == "payload" else -4096 + 64 + 8
    data[at] ^= 0x10
    log.write_bytes(data)
    done, report, _ = fsck(cairn, log)
    assert done.returncode == 1 and not report["ok"]
    assert str(log) in done.stderr.decode() and "damaged" in done.stderr.decode()
    assert report["bad_payloads" if what == "payload" else "bad_headers"] == 1
    # And the store gives a miss, never the wrong bytes.
    refused(cairn("get", "--store", uri, key_of(n)), 1, key_of(n)[:16])


def test_fsck_looks_at_the_second_copy_of_a_tombstone(cairn, uri, place):
    ids = [hashlib.sha256(b"%d" % n).digest() for n in range(60)]
    with cairn_package.open(uri) as store:
        assert all(store.put(ids[:3], [value_of(n, 50_000) for n in range(3)]))
        store.flush()
        assert all(store.delete(ids[1:2]))
        for n in range(3, 60):  # until its segment has a footer
            assert store.put(ids[n : n + 1], [value_of(n, 50_000)]) == [True]
        store.flush()
    log = place / "cairn.log"
    done, report, dump = fsck(cairn, log, "--dump")
    assert done.returncode == 0 and report["sealed"] > 0
    [tombstone] = [line for line in dump if line.get("kind") == "tombstone"]
    with open(log, "r+b") as file:
        for copy in (1, 0):
            file.seek((tombstone["block"] + copy) * 4096 + 100)
            file.write(b"\xff" * 64)
            file.flush()
            done, report, _ = fsck(cairn, log)
            assert done.returncode == 1 and report["bad_headers"] == 2 - copy


def test_fsck_of_what_is_no_log(cairn, place):
    path = place / "noise"
    path.write_bytes(os.urandom(4 << 20))
    done = cairn("fsck", "--quiet", path)
    assert done.returncode == 1 and str(path) in done.stderr.decode()
    done = cairn("fsck", "--quiet", place / "absent")
    assert done.returncode == 1 and "absent" in done.stderr.decode()


# --- bench: that it runs, checks its bytes and prints what it promises; no speed is asserted ---

FIELDS = {
    "name", "value", "unit", "limit", "limit_name", "ratio", "p50_us", "p99_us", "p999_us",
    "cpu_s_per_gb",
}  # fmt: skip


def bench(cairn, place, *args):
    done = cairn("bench", *args, "--json", "--seconds", "0.4", "--rounds", "2", "--path", place)
    assert done.returncode == 0, done.stderr.decode()
    rows = json.loads(done.stdout)
    assert rows and all(set(row) == FIELDS for row in rows)
    assert all(row["value"] > 0 for row in rows)
    return {row["name"]: row for row in rows}


def test_bench_key(cairn, place):
    row = bench(cairn, place, "key")["keys-128k"]
    assert row["unit"] == "ms" and row["limit"] > 0 and row["p50_us"] <= row["p999_us"]


def test_bench_ram_names_and_options(cairn, place):
    rows = bench(cairn, place, "ram", "--working-set", "128MiB")
    assert {
        "ram-get-4MiB", "ram-get-scatter-32KiB", "ram-get-scatter-32KiB-verified", "ram-put-4MiB",
        "ram-put-gather-32KiB",
    } <= set(rows)  # fmt: skip
    more = ["--size", "256KiB", "--threads", "2"]
    rows = bench(cairn, place, "ram", "--working-set", "128MiB", *more)
    assert "ram-get-256KiB" in rows


def test_bench_disk_and_mixed_leave_nothing_behind(cairn, place):
    rows = bench(cairn, place, "disk", "--size", "1MiB", "--working-set", "256MiB")
    assert {"disk-read-1MiB", "disk-write-1MiB"} <= set(rows)
    more = ["--read-share", "50", "--threads", "2"]
    rows = bench(cairn, place, "mixed", "--working-set", "512MiB", *more)
    assert any(name.startswith("mixed-r50") for name in rows)
    assert not list(place.iterdir())


def test_bench_gpu_on_the_emulated_driver(cairn, place):
    args = ["gpu", "--cuda", DRIVER, "--seconds", "0.1", "--rounds", "1", "--path", place]
    done = cairn("bench", *args, "--json")
    said = done.stderr.decode()
    assert done.returncode == 0 and "violation" not in said, said
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    goals = json.loads((ROOT / "tools/bench/goals.json").read_text())
    wanted = {g["name"] for g in goals if g["name"].startswith("gpu-")}
    if "gpu-matmul-beside-* is left out: this program was built without nvcc" in said:
        wanted -= {"gpu-matmul-beside-engines", "gpu-matmul-beside-kernel"}
    assert wanted <= set(rows)
    sizes = [f"{1 << i}KiB" for i in range(1, 10)] + ["1MiB"]
    pages = {f"gpu-engines-{way}-{size}" for way in ("to", "from") for size in sizes}
    assert pages <= set(rows) and all(row["value"] > 0 for row in rows.values())
    assert not list(place.iterdir())


def test_bench_gpu_without_a_driver(cairn, place):
    done = cairn("bench", "gpu", "--cuda", place / "none.so", "--path", place)
    said = done.stderr.decode()
    assert done.returncode == 1 and f"no CUDA driver: {place / 'none.so'}" in said
    assert len(said.splitlines()) == 1, said


def test_bench_replay(cairn, place):
    trace = place / "trace.jsonl"
    chain = random.Random(7)
    lines = []
    for i in range(200):
        head = chain.randrange(10)
        ids = [head * 100 + j for j in range(5)] + [10_000 + i]
        lines.append(json.dumps({"timestamp": i, "input_length": 6 * 256, "output_length": 1,
                                 "hash_ids": ids}))  # fmt: skip
    trace.write_text("\n".join(lines) + "\n")
    rows = bench(cairn, place, "replay", trace, "--capacity", "20,2000")
    for policy in ("lru", "s3fifo"):
        assert rows[f"replay-{policy}-2000"]["value"] > rows[f"replay-{policy}-20"]["value"]
        assert rows[f"replay-{policy}-2000"]["ratio"] == pytest.approx(1)
    refused(cairn("bench", "replay", trace, "--capacity", "ten"), 1, "'ten'", "--capacity")


def test_bench_check_names_what_was_missed(cairn, place):
    """With one round the figures mean nothing; the exit status must agree with what is said."""
    done = cairn("bench", "key", "--check", "--rounds", "1", "--path", place)
    text = done.stderr.decode()
    assert f"{1 - done.returncode} of 1 goals met" in text
    assert ("missed: keys-128k" in text) == (done.returncode == 1)


@pytest.fixture(scope="session")
def without_vllm(tmp_path_factory):
    """An interpreter that has nothing but its own library."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=120)
    return {"CAIRN_PYTHON": str(folder / "bin" / "python")}


def test_bench_engine_says_what_it_measures(cairn, without_vllm):
    done = cairn("bench", "engine", "--help", env=without_vllm)
    assert done.returncode == 0, done.stderr.decode()
    text = done.stdout.decode()
    assert text.startswith("usage: cairn bench engine ")
    for word in ["--json FILE", "--check", "CAIRN_PYTHON", "warm", "misses", "restart",
                 "conversation", "faults"]:
        assert word in text


@pytest.mark.parametrize(
    "args, words",
    [
        (["wrm"], ["'wrm'", "did you mean 'warm'"]),
        (["qqqqq"], ["'qqqqq'", "there are warm"]),
        (["--chek"], ["--chek", "cairn bench engine --help"]),
        (["--rounds", "0"], ["--rounds 0", "1 or more"]),
        (["--rounds", "many"], ["'many'"]),
        (["--json", "/no/such/place/a.json"], ["/no/such/place/a.json", "make it first"]),
    ],
)
def test_wrong_usage_of_bench_engine(cairn, without_vllm, args, words):
    refused(cairn("bench", "engine", *args, env=without_vllm), 2, *words)


def test_bench_engine_says_what_is_missing_and_how_to_get_it(cairn, place, without_vllm):
    def run(*args, python=without_vllm):
        return cairn("bench", "engine", "--out", place / "out", *args, env=python)

    refused(run(python={"CAIRN_PYTHON": "/no/python"}), 1, "'/no/python'", "CAIRN_PYTHON")
    refused(run("--model", place), 1, f"no model in '{place}'", "deploy/run", "--model")
    (place / "config.json").write_text("{}")
    refused(run("--model", place, "--node", place / "x"), 1, str(place / "x"), "deploy/run build")
    refused(run("--model", place), 1, without_vllm["CAIRN_PYTHON"], "vLLM", "deploy/run",
            "CAIRN_PYTHON")
    assert not (place / "out").exists()


def test_bench_engine_empties_no_folder_of_others(cairn, place, without_vllm):
    (place / "mine").write_text("precious")
    refused(cairn("bench", "engine", "--out", place, env=without_vllm), 2, str(place), "not empty")
    assert (place / "mine").read_text() == "precious"


def test_goals_are_the_figures_that_bench_prints():
    goals = json.loads((ROOT / "tools/bench/goals.json").read_text())
    assert len(goals) == 65 and len({(g["name"], g["metric"]) for g in goals}) == 65
    for goal in goals:
        assert set(goal) == {"name", "metric", "bound", "direction"}
        assert goal["metric"] in ("ratio", "value", "cpu") and goal["direction"] in ("min", "max")
