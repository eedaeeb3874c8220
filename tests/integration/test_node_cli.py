"""`cairn` against a running node: each command as a person and as a script uses it, and what it
says to wrong input, to no node, and to something else that listens there."""

import contextlib
import json
import os
import pty
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import termios
import threading
import time
from pathlib import Path

import pytest
from freeze import freeze, go_on
from kv_client import Kv, value_of
from patience import STALL

ROOT = Path(__file__).resolve().parents[2]
IDENTITY = "model=smollm2,chunk_tokens=4,kv_dtype=bfloat16"
OTHER = "model=smollm2,chunk_tokens=4,kv_dtype=fp8"
LENGTH = 50_000


@pytest.fixture(scope="session")
def program() -> str:
    path = Path(os.environ.get("CAIRN_BIN", ROOT / "build/bin/cairn"))
    assert path.is_file(), f"{path} is missing: run deploy/run build first"
    return str(path)


@pytest.fixture
def cairn(program):
    """Runs `cairn`; `to` is the node that CAIRN_URI names."""

    def run(*args, to=None, stdin=b"", env=None, **more):
        uri = f"unix:{to.socket}" if to else "unix:/nowhere/at/all.sock"
        return subprocess.run([program, *map(str, args)], input=stdin, capture_output=True,
                              timeout=60, env={**os.environ, "CAIRN_URI": uri, **(env or {})},
                              **more)

    return run


def said(done, status=0) -> str:
    assert done.returncode == status, (done.stdout.decode(), done.stderr.decode())
    return done.stdout.decode()


def told(done, status=0):
    return json.loads(said(done, status))


def refused(done, status, *words):
    text = done.stderr.decode()
    assert done.returncode == status, (done.stdout.decode(), text)
    assert text.startswith("cairn: ") and text.count("\n") == 1, text
    for word in words:
        assert word in text, text


@pytest.fixture
def tokens(place):
    """10 tokens: two chunks of 4 and a tail of 2."""
    path = place / "tokens"
    path.write_text("[11, 12, 13, 14, 15, 16, 17, 18, 19, 20]\n")
    return path


def keys_of(cairn, tokens, identity=IDENTITY, *more):
    done = cairn("keys", "--identity", identity, "--json", *more, tokens)
    return [bytes.fromhex(key) for key in told(done)["keys"]]


def fingerprint_of(cairn, tokens, identity=IDENTITY):
    done = cairn("keys", "--identity", identity, "--json", tokens)
    return bytes.fromhex(told(done)["fingerprint"])


def canonical_of(identity):
    """As chunking/README.md says; made by the package's C library through the Python package."""
    from cairn import Identity

    fields = dict(field.split("=") for field in identity.split(","))
    chunk = int(fields.pop("chunk_tokens"))
    return bytes(Identity(chunk_tokens=chunk, **fields).canonical)


def store(node, keys, fingerprint=bytes(32)):
    with Kv(path=node.socket) as c:
        parent = bytes(32)
        for key in keys:
            answer = c.put(key, value_of(key, LENGTH), parent=parent, fingerprint=fingerprint)
            assert answer[0] in (0, -2), answer
            parent = key


# --- reaching the node ---


ASKING = [["ping"], ["info"], ["stat"], ["top", "--once"], ["config", "print"],
          ["clear", "--all", "--yes"], ["pin", "--key", "00" * 32], ["unpin", "--key", "00" * 32],
          ["why-miss", "--key", "00" * 32]]


@pytest.mark.parametrize("args", ASKING, ids=lambda args: args[0])
def test_without_a_node_they_say_what_to_start(cairn, args):
    refused(cairn(*args), 1, "/nowhere/at/all.sock", "--uri")


@pytest.mark.parametrize("args", ASKING, ids=lambda args: args[0])
@pytest.mark.parametrize(
    "uri, word",
    [("tcp://10.0.0.1:7379", "10.0.0.1"), ("nonsense", "unix:/path"), ("tcp://127.0.0.1", "port"),
     ("embedded:///tmp", "inside one program")])
def test_what_is_no_address_is_wrong_usage(cairn, args, uri, word):
    refused(cairn(*args, "--uri", uri), 2, word)


def test_a_server_of_another_kind_is_named_so(cairn):
    """It answers, but not in the Redis protocol."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer():
        for _ in range(2):
            c, _ = server.accept()
            c.recv(1000)
            c.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            c.close()

    threading.Thread(target=answer, daemon=True).start()
    for args in (["ping"], ["top", "--once"]):
        refused(cairn(*args, "--uri", f"tcp://127.0.0.1:{server.getsockname()[1]}"), 1, "Redis")
    server.close()


def test_a_server_that_never_answers_is_left_in_time(cairn):
    server = socket.create_server(("127.0.0.1", 0))
    start = time.monotonic()
    uri = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    done = cairn("ping", "--timeout", "300ms", "--uri", uri)
    refused(done, 1, "0.3 s", "--timeout")
    assert time.monotonic() - start < 5 + STALL
    server.close()


HOSTILE = [b"*1048577\r\n", b"*2000000000\r\n", b"$99999999999\r\n", b"*1\r\n" * 50,
           b"*1048576\r\n" * 7, b"%-5\r\n", b"*-2\r\n", b":12x\r\n", b"$5\r\nabcdefgh\r\n",
           b"+" + b"a" * 200_000, b"\0\0\0\0\r\n", b"|1\r\n+a\r\n+b\r\n+OK\r\n", b"*0\r\n",
           b"$-1\r\n", b"_\r\n", b"#x\r\n", b"-ERR \xff\xfe\r\n", b"*2\r\n$4\r\nheld\r\n"]


@pytest.mark.parametrize("answer", HOSTILE, ids=lambda a: repr(a[:16]))
def test_no_answer_does_harm(cairn, answer):
    """Whatever answers: a sentence and exit status 1 or, where it is an answer after all, 0."""
    server = socket.create_server(("127.0.0.1", 0))
    uri = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    ended = False

    def serve():
        with contextlib.suppress(OSError):
            while not ended:
                c, _ = server.accept()
                with c, contextlib.suppress(OSError):
                    while c.recv(65536):
                        c.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    for args in (["ping"], ["info", "--json"], ["stat"], ["top", "--once", "--interval", "10ms"],
                 ["config", "print", "--json"], ["clear", "--all", "--yes"],
                 ["pin", "--key", "00" * 32], ["why-miss", "--key", "00" * 32]):
        done = cairn(*args, "--timeout", "300ms", "--uri", uri)
        assert done.returncode in (0, 1, 2), (args, done)
        if done.returncode:
            assert done.stderr.startswith(b"cairn: ") and done.stderr.count(b"\n") == 1
    ended = True
    server.close()


def test_a_node_that_stops_in_the_middle(cairn, node):
    freeze(node.process.pid)
    try:
        refused(cairn("info", "--timeout", "300ms", to=node), 1, "did not answer")
    finally:
        go_on(node.process.pid)
    assert "cairn_version" in said(cairn("info", to=node))


# --- ping, info, stat, config ---


def test_ping(cairn, node):
    assert re.fullmatch(r"PONG from unix:\S+ in \d+ us\n", said(cairn("ping", to=node)))
    reply = told(cairn("ping", "--json", "--uri", f"tcp://127.0.0.1:{node.port}"))
    assert reply["reply"] == "PONG" and reply["cairnd"] is True and reply["us"] > 0


def test_info(cairn, node):
    text = said(cairn("info", to=node))
    assert "# Server\r\n" in text and "cairn_version:" in text
    assert "# Memory" not in said(cairn("info", "server", to=node))
    both = told(cairn("info", "--json", "server", "clients", to=node))
    assert sorted(both) == ["Clients", "Server"] and both["Clients"]["connected_clients"] == "1"
    refused(cairn("info", "nosuch", to=node), 1, "'nosuch'")


def test_stat_of_a_node_and_of_an_identity(cairn, node, tokens):
    store(node, keys_of(cairn, tokens), fingerprint_of(cairn, tokens))
    stat = told(cairn("stat", "--json", to=node))
    assert stat["put"]["stored"] == 3 and stat["ram"]["resident_values"] == 3
    assert "put.stored " in said(cairn("stat", to=node))
    told(cairn("stat", "--json", "--identity", IDENTITY, to=node))
    refused(cairn("stat", "--identity", "nonsense", to=node), 2, "nonsense")
    refused(cairn("stat", "--store", "embedded:///tmp", "--uri", "unix:/x", to=node), 2, "--store")


def test_config(cairn, node):
    assert said(cairn("config", "get", "ram", to=node)) == "ram 64MiB\n"
    assert told(cairn("config", "get", "--json", "*-timeout", to=node)).keys() >= {"idle-timeout"}
    lines = said(cairn("config", "print", to=node)).splitlines()
    assert len(lines) > 20 and 'disk-path ""' in lines
    assert said(cairn("config", "set", "idle-timeout", "9s", to=node)) == "idle-timeout 9s\n"
    assert said(cairn("config", "get", "idle-timeout", to=node)) == "idle-timeout 9s\n"
    refused(cairn("config", "get", "nosuch", to=node), 2, "'nosuch'", "config print")
    refused(cairn("config", "set", "port", "1", to=node), 1, "port")
    refused(cairn("config", "set", "idle-timeout", "soon", to=node), 1, "idle-timeout")
    refused(cairn("config", "sett", "a", "b", to=node), 2, "'sett'")
    refused(cairn("config", "set", "ram", to=node), 2, "NAME VALUE")
    refused(cairn("config", "print", "x", to=node), 2, "config print")


# --- keys: extras and texts ---


def test_extras_are_part_of_a_name(cairn, tokens):
    plain = keys_of(cairn, tokens)
    some = keys_of(cairn, tokens, IDENTITY, "--extra", "1:c0ffee")
    assert some[0] == plain[0] and some[1] != plain[1] and some[2] != plain[2]
    two = keys_of(cairn, tokens, IDENTITY, "--extra", "2:01,0:02,0:03")
    assert two == keys_of(cairn, tokens, IDENTITY, "--extra", "0:02,2:01,0:03")[:3]
    assert two != keys_of(cairn, tokens, IDENTITY, "--extra", "0:03,0:02,2:01")
    from cairn import PUBLIC, Identity
    from cairn import keys as package_keys

    ident = Identity(model="smollm2", chunk_tokens=4, kv_dtype="bfloat16")
    same = package_keys(ident, list(range(11, 21)), domain=PUBLIC, extras={1: b"\xc0\xff\xee"})
    assert [bytes(key) for key in same] == some


@pytest.mark.parametrize("extra", ["x", "1", "1:", "1:0", "1:xy", ":00", "1:00;2:00", "-1:00",
                                   "4294967296:00"])
def test_what_is_no_extra(cairn, tokens, extra):
    refused(cairn("keys", "--identity", IDENTITY, f"--extra={extra}", tokens), 2, "CHUNK:HEX")


def test_an_extra_of_a_chunk_that_is_not_there(cairn, tokens):
    refused(cairn("keys", "--identity", IDENTITY, "--extra", "3:00", tokens), 2, "chunk 3")


def test_a_text_needs_its_tokenizer(cairn, place, tokens):
    text = place / "text"
    text.write_text("hello world hello")
    refused(cairn("keys", "--identity", IDENTITY, text), 2, "'hello'", "--tokenizer")
    refused(cairn("keys", "--identity", IDENTITY, "--tokenizer", "/no/such", text,
                  env={"PATH": "/nowhere"}), 2, "python3")


def test_a_text_with_its_tokenizer(cairn, place):
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"hello": 7, "world": 8, "?": 9}, "?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(place / "tokenizer.json"))
    text, ids = place / "text", place / "ids"
    text.write_text("hello world hello " * 3)
    ids.write_text("7 8 7 " * 3)
    path = f"{Path(os.sys.executable).parent}:{os.environ['PATH']}"
    done = cairn("keys", "--identity", IDENTITY, "--tokenizer", place / "tokenizer.json", text,
                 env={"PATH": path})
    assert said(done) == said(cairn("keys", "--identity", IDENTITY, ids))
    done = cairn("keys", "--identity", IDENTITY, "--tokenizer", text, text, env={"PATH": path})
    refused(done, 2, "tokenizer.json")


# --- lookup, why-miss ---


def test_lookup_says_what_is_held_and_where(cairn, new_node, tokens):
    node = new_node()
    node.start(f"--disk-path={node.place}", "--disk=64MiB")
    keys = keys_of(cairn, tokens)
    args = ["lookup", "--identity", IDENTITY, "--json", tokens]
    found = told(cairn(*args, to=node))
    assert (found["chunks"], found["tokens"], found["held"]) == (3, 10, 0)
    store(node, keys[:2])
    with Kv(path=node.socket) as c:
        assert c.call("CAIRN.FLUSH", 5000) == 0
    found = told(cairn(*args, to=node))
    assert (found["held"], found["held_tokens"], found["resident"]) == (2, 8, 2)
    rows = found["list"]
    assert [row["held"] for row in rows] == [True, True, False]
    assert rows[0]["ram"] and rows[0]["disk"] and rows[2]["cause"] == "absent"
    assert [bytes.fromhex(row["key"]) for row in rows] == keys
    assert [(row["first_token"], row["tokens"]) for row in rows] == [(0, 4), (4, 4), (8, 2)]
    text = said(cairn("lookup", "--identity", IDENTITY, "-", to=node, stdin=tokens.read_bytes()))
    assert "tokens 4..7" in text and "ram and disk" in text
    assert "2 of 3 chunks, 8 of 10 tokens" in text
    store(node, keys)
    found = told(cairn(*args, to=node))
    assert (found["held"], found["held_tokens"]) == (3, 10)


def test_lookup_refuses_what_it_cannot_read(cairn, node, place, tokens):
    refused(cairn("lookup", tokens, to=node), 2, "--identity")
    refused(cairn("lookup", "--identity", IDENTITY, to=node), 2, "TOKENFILE")
    refused(cairn("lookup", "--identity", IDENTITY, "/no/such", to=node), 2, "/no/such")
    empty = place / "empty"
    empty.write_text("")
    refused(cairn("lookup", "--identity", IDENTITY, empty, to=node), 2, "no token")
    long = place / "long"
    long.write_text("1 " * 4 * 9000)
    refused(cairn("lookup", "--identity", IDENTITY, long, to=node), 2, "9000 chunks", "8192")


def why(cairn, node, tokens, *args, identity=IDENTITY):
    answer = told(cairn("why-miss", "--identity", identity, "--json", *args, tokens, to=node))
    text = said(cairn("why-miss", "--identity", identity, *args, tokens, to=node))
    ago = r"\d+\.\d s ago"  # the second call is later than the first
    assert re.sub(ago, "", text).startswith(re.sub(ago, "", answer["verdict"]) + "\n")
    return answer


def note(node, identity):
    with Kv(path=node.socket) as c:
        assert c.call("CAIRN.IDENTITY", canonical_of(identity)) == 0


def test_why_miss_nothing_stored(cairn, node, tokens):
    assert "is it the right node" in why(cairn, node, tokens)["verdict"]


def test_why_miss_nothing_missing(cairn, node, tokens):
    note(node, IDENTITY)
    store(node, keys_of(cairn, tokens))
    answer = why(cairn, node, tokens)
    assert "every chunk is held" in answer["verdict"] and "missing" not in answer


def test_why_miss_names_the_field_of_the_identity_that_differs(cairn, node, tokens):
    note(node, OTHER)
    store(node, keys_of(cairn, tokens, OTHER))
    answer = why(cairn, node, tokens)
    assert "kv_dtype 'bfloat16' here, 'fp8' there" in answer["verdict"]
    assert answer["tried"][0] == {"way": "under the nearest identity", "held": 3}
    assert answer["identity"]["known"] is False
    # An engine that never hits stores under its own identity.
    note(node, IDENTITY)
    answer = why(cairn, node, tokens)
    assert "kv_dtype 'bfloat16' here, 'fp8' there" in answer["verdict"]
    assert answer["identity"]["known"] is True


def test_why_miss_names_the_part_of_the_key_that_differs(cairn, node, tokens):
    note(node, IDENTITY)
    store(node, keys_of(cairn, tokens))
    answer = why(cairn, node, tokens, "--extra", "0:01")
    assert "held without the extras (3 chunks)" in answer["verdict"]
    answer = why(cairn, node, tokens, "--parent", "11" * 32)
    assert "held without the parent (3 chunks)" in answer["verdict"]
    secret = tokens.parent / "secret"
    secret.write_text("c0ffee")
    answer = why(cairn, node, tokens, "--domain-file", secret)
    assert "held in the public domain (3 chunks)" in answer["verdict"]
    more = tokens.parent / "more"
    more.write_text("1, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20")
    answer = why(cairn, node, more)
    assert "held without the first token (3 chunks)" in answer["verdict"]


def test_why_miss_tells_where_the_tokens_part(cairn, node, tokens):
    note(node, IDENTITY)
    store(node, keys_of(cairn, tokens)[:2])
    answer = why(cairn, node, tokens)
    assert "only the tail of 2 tokens is missing" in answer["verdict"]
    other = tokens.parent / "other"
    other.write_text("11 12 13 14 99 16 17 18 19 20 21 22")
    answer = why(cairn, node, other)
    assert answer["missing"]["chunk"] == 1 and "stored up to chunk 0" in answer["verdict"]
    other.write_text("99 12 13 14")
    assert "no prompt was stored that begins so" in why(cairn, node, other)["verdict"]


def test_why_miss_names_what_dropped_it(cairn, node, tokens):
    note(node, IDENTITY)
    keys = keys_of(cairn, tokens)
    store(node, keys)
    with Kv(path=node.socket) as c:
        assert c.call("CAIRN.DELETE", 60_000, keys[1]) == [0]
    answer = why(cairn, node, tokens)
    assert answer["missing"]["chunk"] == 1 and answer["missing"]["cause"] == "deleted"
    assert re.search(r"chunk 1 was held and was dropped \d+\.\d s ago: ", answer["verdict"])
    answer = told(cairn("why-miss", "--key", keys[1].hex(), "--json", to=node))
    assert "was dropped" in answer["verdict"]
    answer = told(cairn("why-miss", "--key", "22" * 32, "--json", to=node))
    assert "never stored" in answer["verdict"]
    assert "nothing is missing" in said(cairn("why-miss", "--key", keys[0].hex(), to=node))


def test_why_miss_wrong_usage(cairn, node, tokens):
    refused(cairn("why-miss", to=node), 2, "--key")
    refused(cairn("why-miss", "--key", "00" * 32, tokens, to=node), 2, "--key")
    refused(cairn("why-miss", "--key", "xy", to=node), 2, "'xy'", "64 hexadecimal digits")
    refused(cairn("why-miss", tokens, to=node), 2, "--identity")


# --- clear, pin ---


def test_clear_asks_first(cairn, node, tokens):
    store(node, keys_of(cairn, tokens))
    refused(cairn("clear", "--all", to=node), 2, "every chunk", "--yes")
    refused(cairn("clear", "--yes", to=node), 2, "--identity", "--prefix", "--all")
    refused(cairn("clear", "--yes", "--all", "--prefix", "00" * 32, to=node), 2, "one of")
    refused(cairn("clear", "--yes", "--prefix", "00", to=node), 2, "'00'")
    refused(cairn("clear", "--yes", "--identity", "nonsense", to=node), 2, "nonsense")
    assert told(cairn("stat", "--json", to=node))["ram"]["resident_values"] == 3


def test_clear_asks_on_a_terminal(program, node, cairn, tokens):
    store(node, keys_of(cairn, tokens))
    command = [program, "clear", "--all", "--uri", f"unix:{node.socket}"]
    for answer, status, left in ((b"n\n", 1, 3), (b"\n", 1, 3), (b"y\n", 0, 0)):
        master, slave = pty.openpty()
        p = subprocess.Popen(command, stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        os.close(slave)
        os.write(master, answer)
        _, err = p.communicate(timeout=30)
        os.close(master)
        assert p.returncode == status and b"[y/N]" in err
        assert told(cairn("stat", "--json", to=node))["ram"]["resident_values"] == left


def test_clear_of_an_identity_a_prefix_and_all(cairn, node, tokens):
    ours, theirs = keys_of(cairn, tokens), keys_of(cairn, tokens, OTHER)
    store(node, ours, fingerprint_of(cairn, tokens))
    store(node, theirs, fingerprint_of(cairn, tokens, OTHER))
    node.redis().set("string", "stays")
    done = cairn("clear", "--yes", "--json", "--identity", IDENTITY, to=node)
    assert told(done) == {"deleted": 3}
    with Kv(path=node.socket) as c:
        assert c.lookup(ours)[0] == 0 and c.lookup(theirs)[0] == 3
    text = said(cairn("clear", "--yes", "--prefix", theirs[1].hex(), to=node))
    assert text == "2 chunks deleted\n"
    with Kv(path=node.socket) as c:
        assert c.lookup(theirs)[0] == 1
    assert told(cairn("clear", "--yes", "--json", "--all", to=node)) == {"deleted": 1}
    assert node.redis().get("string") == b"stays"


def test_pin_and_unpin(cairn, node, tokens):
    keys = keys_of(cairn, tokens)
    store(node, keys[:2])
    answer = told(cairn("pin", "--identity", IDENTITY, "--json", tokens, to=node))
    assert answer == {"chunks": 3, "pinned": 2}
    assert told(cairn("stat", "--json", to=node))["ram"]["leased_bytes"] >= 2 * LENGTH
    assert said(cairn("unpin", "--key", keys[0].hex(), to=node)) == "1 of 1 chunks unpinned\n"
    assert said(cairn("unpin", "--identity", IDENTITY, tokens, to=node)) == \
        "1 of 3 chunks unpinned\n"
    assert told(cairn("stat", "--json", to=node))["ram"]["leased_bytes"] == 0
    refused(cairn("pin", to=node), 2, "--key")
    refused(cairn("pin", "--key", "1", to=node), 2, "'1'")
    refused(cairn("unpin", tokens, to=node), 2, "--identity")


# --- top ---


def test_top_once(cairn, node, tokens):
    keys = keys_of(cairn, tokens)
    store(node, keys)
    with Kv(path=node.socket) as c:
        c.call("CLIENT", "SETNAME", "engine-0")
        assert c.call("CAIRN.IDENTITY", canonical_of(IDENTITY)) == 0
        assert c.lookup(keys[:2] + [bytes(31) + b"1"])[0] == 2
        lease = c.lease(keys[:1])[0]
        assert lease
        text = said(cairn("top", "--once", "--interval", "50ms", to=node))
        row = told(cairn("top", "--once", "--json", "--interval", "50ms", to=node))
    assert "engine-0" in text and "CAIRN.LEASE".lower() in text.lower()
    assert "66.7 % since the start (8 of 12)" in text
    assert row["tokens_hit"] == 8 and row["tokens_asked"] == 12
    assert row["ram_values"] == 3 and row["clients"] == 2 and row["oldest_lease_ms"] > 0
    assert row["rates"]["hit_share"] is None
    assert row["rates"]["hit_share_all"] == pytest.approx(8 / 12, rel=1e-4)
    assert row["rates"]["commands"] > 0


def test_top_for_scripts(cairn, node):
    lines = said(cairn("top", "--json", "--count", "3", "--interval", "20ms", to=node)).splitlines()
    assert len(lines) == 3 and all(json.loads(line)["run_id"] for line in lines)
    text = said(cairn("top", "--count", "2", "--interval", "20ms", to=node))
    assert text.count("cairn 0") == 2 and "\033" not in text


def watch(program, node):
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    p = subprocess.Popen([program, "top", "--uri", f"unix:{node.socket}", "--interval", "50ms"],
                         stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    return p, master, slave, before


def read_until(master, word, seconds=20 + STALL):
    text, end = b"", time.monotonic() + seconds
    while word not in text and time.monotonic() < end:
        if select.select([master], [], [], 0.1)[0]:
            text += os.read(master, 65536)
    assert word in text, text[-2000:]
    return text


@pytest.mark.parametrize("ending", ["key", "term"])
def test_top_gives_the_terminal_back(program, node, ending):
    p, master, slave, before = watch(program, node)
    try:
        screen = read_until(master, b"evicted")
        assert b"\033[?1049h" in screen and b"\033[?25l" in screen
        assert not termios.tcgetattr(slave)[3] & termios.ECHO
        if ending == "key":
            os.write(master, b"q")
        else:
            p.send_signal(signal.SIGTERM)
        end = read_until(master, b"\033[?1049l")
        assert b"\033[?25h" in end
        assert p.wait(20) == 0
        assert termios.tcgetattr(slave) == before
    finally:
        p.kill()
        p.wait()
        os.close(master)
        os.close(slave)


def test_top_goes_on_when_the_node_is_back(program, node):
    p, master, slave, before = watch(program, node)
    try:
        read_until(master, b"evicted")
        for _ in range(2):
            node.kill()
            assert b"cairn at unix:" in read_until(master, b"GONE for")
            read_until(master, b"GONE for")
            node.start()
            read_until(master, b"up 00:00:0", 40)
            read_until(master, b"evicted")
        os.write(master, b"q")
        read_until(master, b"\033[?1049l")
        assert p.wait(20) == 0 and termios.tcgetattr(slave) == before
    finally:
        p.kill()
        p.wait()
        os.close(master)
        os.close(slave)


def test_top_tells_scripts_that_the_node_is_gone(cairn, program, node):
    p = subprocess.Popen([program, "top", "--json", "--interval", "50ms", "--uri",
                          f"unix:{node.socket}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        def until_row(wanted):
            while True:
                row = json.loads(p.stdout.readline())
                if wanted(row):
                    return row

        first = until_row(lambda row: "run_id" in row)["run_id"]
        node.kill()
        row = until_row(lambda row: "gone" in row)
        assert row["gone"] is True and row["seconds"] >= 0 and row["why"]
        node.start()
        row = until_row(lambda row: "run_id" in row)
        assert row["run_id"] != first and row["rates"]["commands"] >= 0
        p.terminate()
        assert p.wait(20) == 0
    finally:
        p.kill()
        p.wait()
    node.kill()
    refused(cairn("top", "--count", "2", to=node), 1, "node.sock")


# --- doctor ---


def doctor(cairn, place, *args, status=0, **more):
    """Findings by name; ports and paths of its own unless `args` give others."""
    free = socket.create_server(("127.0.0.1", 0))
    other = socket.create_server(("127.0.0.1", 0))
    ports = [free.getsockname()[1], other.getsockname()[1]]
    free.close()
    other.close()
    given = ["--config=", f"--port={ports[0]}", f"--http-port={ports[1]}", "--ram=64MiB",
             f"--socket={place}/doctor.sock", "--clients-max=100", f"--disk-path={place}",
             "--disk=64MiB", *args]
    answer = told(cairn("doctor", "--json", *given, **more), status)
    assert answer["ok"] is (status == 0)
    for f in answer["findings"]:
        assert f["found"] and (f["state"] == "ok") == (f["fix"] == ""), f
    return {f["name"]: f for f in answer["findings"]}


CHECKS = ["kernel", "memory", "huge pages", "memlock", "open files", "ulimits", "io_uring", "clock",
          "disk path", "disk room", "O_DIRECT", "Redis port", "HTTP port", "unix socket"]


def test_doctor_finds_all_well(cairn, place):
    found = doctor(cairn, place)
    assert list(found) == CHECKS
    assert not [f for f in found.values() if f["state"] == "fail"]
    text = said(cairn("doctor", "--config=", "--port=0", f"--socket={place}/x.sock", "--ram=64MiB",
                      "--clients-max=100"))
    assert text.startswith("ok    kernel        Linux ")
    assert not list(place.iterdir()), "it leaves nothing behind"


def limits(**values):
    def set_limits():
        for name, value in values.items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))

    return set_limits


def test_doctor_under_tight_ulimits(cairn, place):
    found = doctor(cairn, place, status=1, preexec_fn=limits(NOFILE=64))
    assert found["open files"]["state"] == "fail" and "LimitNOFILE" in found["open files"]["fix"]
    found = doctor(cairn, place, status=1, preexec_fn=limits(FSIZE=1 << 20))
    assert found["ulimits"]["state"] == "fail" and "ulimit -f" in found["ulimits"]["fix"]
    found = doctor(cairn, place, "--ram=4GiB", status=1, preexec_fn=limits(AS=2 << 30))
    assert "ulimit -v" in found["ulimits"]["fix"]


@pytest.fixture
def confined_doctor(program, programs):
    """What it finds with rights taken away by tests/env/confine.c, in a place open to anybody."""
    home = Path(tempfile.mkdtemp(prefix="cairn-doctor-"))
    home.chmod(0o777)
    for source, name in ((programs / "env_confine", "confine"), (program, "cairn")):
        shutil.copy(source, home / name)
        (home / name).chmod(0o755)

    def find(*confine):
        done = subprocess.run(
            [home / "confine", *confine, home / "cairn", "doctor", "--json", "--config=",
             "--ram=64MiB", "--port=0", f"--socket={home}/d.sock", "--clients-max=100"],
            capture_output=True, timeout=60)
        if done.returncode == 77:
            pytest.skip(done.stderr.decode())
        return {f["name"]: f for f in told(done)["findings"]}

    yield find
    shutil.rmtree(home, ignore_errors=True)


def test_doctor_as_an_ordinary_user_with_little_memlock(confined_doctor):
    """Of root CAP_IPC_LOCK would lift the limit."""
    found = confined_doctor("--nobody", "--memlock-0")["memlock"]
    assert found["state"] == "warn" and "LimitMEMLOCK" in found["fix"]


def test_doctor_without_io_uring(confined_doctor):
    found = confined_doctor("--no-uring")["io_uring"]
    assert found["state"] == "warn" and "io_uring_disabled" in found["fix"]


def test_doctor_weighs_budgets(cairn, place):
    found = doctor(cairn, place, "--ram=12TiB", "--disk=12TiB", status=1)
    assert found["memory"]["state"] == "fail" and "--ram" in found["memory"]["fix"]
    assert found["disk room"]["state"] == "fail" and "--disk" in found["disk room"]["fix"]


def test_doctor_looks_at_places(cairn, place):
    found = doctor(cairn, place, "--disk-path=/no/such/folder/log", status=1)
    assert "mkdir -p '/no/such/folder'" in found["disk path"]["fix"]
    found = doctor(cairn, place, "--socket=/no/such/folder/x.sock", status=1)
    assert "--socket" in found["unix socket"]["fix"]
    plain = place / "plain"
    plain.write_text("")
    found = doctor(cairn, place, f"--socket={plain}", status=1)
    assert "something else has this name" in found["unix socket"]["fix"]
    assert plain.exists()
    found = doctor(cairn, place, "--disk-path=/dev/shm")
    assert "tmpfs" in found["disk room"]["fix"]


def test_doctor_finds_ports_in_use(cairn, place):
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
        found = doctor(cairn, place, f"--port={port}", status=1)
        assert found["Redis port"]["state"] == "fail" and str(port) in found["Redis port"]["fix"]
        found = doctor(cairn, place, f"--http-port={port}", status=1)
        assert found["HTTP port"]["state"] == "fail"


def test_doctor_knows_a_node(cairn, place, node):
    found = doctor(cairn, place, f"--port={node.port}", f"--http-port={node.http_port}",
                   f"--socket={node.socket}")
    for name in ("Redis port", "HTTP port", "unix socket"):
        assert found[name]["state"] == "warn", found[name]
        assert "already" in found[name]["found"] + found[name]["fix"]
    assert said(cairn("ping", to=node)).startswith("PONG"), "it still listens there"


def test_doctor_reads_the_nodes_configuration(cairn, place):
    conf = place / "cairnd.conf"
    conf.write_text(f"ram 64MiB\nport 0\nsocket {place}/c.sock\nclients-max 10\nhttp-port 0\n")
    answer = told(cairn("doctor", "--json", f"--config={conf}"))
    assert "64 MiB" in next(f["found"] for f in answer["findings"] if f["name"] == "memory")
    conf.write_text("rams 64MiB\n")
    refused(cairn("doctor", f"--config={conf}"), 2, "rams", "ram")
    refused(cairn("doctor", "--config=/no/such.conf"), 2, "/no/such.conf")
    refused(cairn("doctor", "--ram", "lots"), 2, "lots")
    refused(cairn("doctor", "--prot", "1"), 2, "--port")


# --- the commands of a store, on a node ---


def test_put_and_get_take_a_node_for_a_store(cairn, node, tmp_path):
    key, value = "5a" * 32, os.urandom(300_000)
    said(cairn("put", "--store", f"tcp://127.0.0.1:{node.port}", key, "-", stdin=value))
    for uri in (f"unix:{node.socket}", f"tcp://127.0.0.1:{node.port}"):
        got = cairn("get", "--store", uri, key)
        assert got.returncode == 0 and got.stdout == value, got.stderr
    assert cairn("get", "--store", f"unix:{node.socket}", "5b" * 32).returncode == 1
