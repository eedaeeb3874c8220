"""What people have for Redis, used as they use it, against cairnd."""

import os
import re
import shutil
import subprocess

import pytest

redis = pytest.importorskip("redis")

pytestmark = pytest.mark.timeout(180)

HIREDIS = r"""
#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(int good, const char *what, redisContext *c)
{
    if (!good) {
        fprintf(stderr, "%s: %s\n", what, c && c->err ? c->errstr : "another reply");
        exit(1);
    }
}

static redisReply *call(redisContext *c, const char *command, int type)
{
    redisReply *r = redisCommand(c, command);
    check(r && r->type == type, command, c);
    return r;
}

int main(int argc, char **argv)
{
    struct timeval limit = {10, 0};
    redisContext *c = argv[1][0] == '/' ? redisConnectUnix(argv[1])
                                        : redisConnect("127.0.0.1", atoi(argv[1]));
    check(argc == 2 && c && !c->err && redisSetTimeout(c, limit) == REDIS_OK, "connect", c);
    redisReply *r = call(c, "SET greeting hello EX 100", REDIS_REPLY_STATUS);
    check(strcmp(r->str, "OK") == 0, "SET", c);
    freeReplyObject(r);
    r = call(c, "GET greeting", REDIS_REPLY_STRING);
    check(r->len == 5 && memcmp(r->str, "hello", 5) == 0, "GET", c);
    freeReplyObject(r);
    r = call(c, "TTL greeting", REDIS_REPLY_INTEGER);
    check(r->integer > 90 && r->integer <= 100, "TTL", c);
    freeReplyObject(r);
    freeReplyObject(call(c, "GET nobody", REDIS_REPLY_NIL));
    r = call(c, "INCR greeting", REDIS_REPLY_ERROR);
    check(strncmp(r->str, "ERR ", 4) == 0, "INCR", c);
    freeReplyObject(r);

    static char big[3 << 20];
    for (size_t i = 0; i < sizeof big; i++)
        big[i] = (char)(i * 7 + i / 251);
    for (int i = 0; i < 8; i++)
        check(redisAppendCommand(c, "SET big:%d %b", i, big, sizeof big - (size_t)i) == REDIS_OK,
              "append", c);
    for (int i = 0; i < 8; i++)
        check(redisAppendCommand(c, "GET big:%d", i) == REDIS_OK, "append", c);
    for (int i = 0; i < 16; i++) {
        check(redisGetReply(c, (void **)&r) == REDIS_OK, "reply", c);
        if (i >= 8)
            check(r->type == REDIS_REPLY_STRING && r->len == sizeof big - (size_t)(i - 8) &&
                  memcmp(r->str, big, r->len) == 0, "bytes of a large value", c);
        freeReplyObject(r);
    }
    r = call(c, "MGET greeting nobody big:0", REDIS_REPLY_ARRAY);
    check(r->elements == 3 && r->element[1]->type == REDIS_REPLY_NIL &&
          r->element[2]->len == sizeof big, "MGET", c);
    freeReplyObject(r);
    redisFree(c);
    puts("all good");
    return 0;
}
"""


def tool(name):
    path = shutil.which(name)
    if not path:
        pytest.skip(f"{name} is not installed")
    return path


def client(node, **options):
    return redis.Redis(port=node.port, socket_timeout=20, **options)


# --- redis-py ---

@pytest.fixture(params=[2, 3])
def r(node, request):
    with client(node, protocol=request.param) as c:
        c.flushall()
        yield c


def test_redis_py_sets_and_gets(r):
    assert r.ping() is True
    assert r.set("a", "1") is True and r.get("a") == b"1"
    assert r.get("nobody") is None
    assert r.set("a", b"\x00\xff", nx=True) is None and r.set("b", b"\x00\xff", nx=True) is True
    assert r.set("nobody", "1", xx=True) is None
    assert r.set("a", "2", get=True) == b"1"
    assert r.getset("a", "3") == b"2" and r.getdel("a") == b"3" and r.exists("a", "b", "b") == 2
    assert r.setnx("a", "x") is True and r.setnx("a", "y") is False
    assert r.mset({"m1": "1", "m2": b"2"}) is True
    assert r.mget("m1", "none", "m2") == [b"1", None, b"2"]
    assert r.msetnx({"m1": "9", "m3": "9"}) is False and r.get("m3") is None
    assert r.msetnx({"n1": "9", "n2": "9"}) is True
    assert r.strlen("b") == 2 and r.getrange("b", 1, 1) == b"\xff" and r.type("b") == b"string"
    assert r.delete("m1", "m2", "nobody") == 2 and r.unlink("n1") == 1
    assert r["b"] == b"\x00\xff" and "b" in r
    assert r.memory_usage("b") >= 4096 and r.object("encoding", "a") == b"embstr"
    with pytest.raises(redis.ResponseError):
        r.incr("a")
    with pytest.raises(redis.ResponseError):
        r.lpush("l", "x")


def test_redis_py_times(r):
    assert r.set("t", "v", ex=100) is True and 98 <= r.ttl("t") <= 100
    assert r.set("t", "v", px=100000) is True and 98000 <= r.pttl("t") <= 100000
    assert r.persist("t") is True and r.ttl("t") == -1 and r.ttl("nobody") == -2
    assert r.expire("t", 50) is True and r.expire("t", 60, nx=True) is False
    assert r.expire("t", 40, gt=True) is False and r.expire("t", 40, lt=True) is True
    assert r.set("t", "w", keepttl=True) is True and 30 < r.ttl("t") <= 40
    assert r.getex("t", persist=True) == b"w" and r.ttl("t") == -1
    assert r.getex("t", px=1000) == b"w" and r.pexpiretime("t") > 0
    assert r.expireat("t", 1) is True and r.get("t") is None


def test_redis_py_walks(r):
    names = {f"walk:{i}" for i in range(500)}
    pipe = r.pipeline(transaction=False)
    for name in sorted(names):
        pipe.set(name, name * 3)
    assert pipe.execute() == [True] * 500
    r.set("other", "x")
    assert r.dbsize() == 501
    seen = {k.decode() for k in r.scan_iter(match="walk:*", count=50)}
    assert seen == names
    assert {k.decode() for k in r.keys("walk:?")} == {f"walk:{i}" for i in range(10)}
    assert r.randomkey().decode() in names | {"other"}
    pipe = r.pipeline(transaction=False)
    for name in sorted(names):
        pipe.get(name)
    assert pipe.execute() == [(name * 3).encode() for name in sorted(names)]
    assert r.flushdb(asynchronous=True) is True and r.dbsize() == 0 and r.keys() == []


def test_redis_py_decodes(node):
    with client(node, decode_responses=True, client_name="tests", protocol=3) as c:
        assert c.set("text", "grün") is True and c.get("text") == "grün"
        assert c.client_getname() == "tests"
        assert isinstance(c.info(), dict) and isinstance(c.config_get("*"), dict)
        assert c.client_id() > 0 and c.command_count() > 50


def test_redis_py_over_the_unix_socket(node):
    with redis.Redis(unix_socket_path=str(node.socket)) as c:
        big = os.urandom(2 << 20)
        assert c.set("big", big) is True and c.get("big") == big
        assert c.getrange("big", 1 << 20, -1) == big[1 << 20:]


def test_redis_py_many_connections(node):
    clients = [client(node) for _ in range(50)]
    for i, c in enumerate(clients):
        assert c.set(f"c:{i}", str(i)) is True
    for i, c in enumerate(clients):
        assert c.get(f"c:{49 - i}") == str(49 - i).encode()
        c.close()


# --- redis-cli, redis-benchmark, hiredis ---

def cli(node, *words, stdin=None):
    return subprocess.run([tool("redis-cli"), "-p", str(node.port), *words], input=stdin,
                          capture_output=True, timeout=60, check=True).stdout


def test_redis_cli(node):
    assert cli(node, "SET", "from cli", "some text") == b"OK\n"
    assert cli(node, "GET", "from cli") == b"some text\n"
    assert cli(node, "-3", "GET", "nobody") == b"\n"
    assert cli(node, "-x", "SET", "bytes", stdin=b"\x00\x01\n") == b"OK\n"
    assert cli(node, "--no-raw", "GET", "bytes") == b'"\\x00\\x01\\n"\n'
    assert b"bytes" in cli(node, "--scan", "--pattern", "b*tes")
    assert b"redis_version" in cli(node, "INFO") or b"cairn" in cli(node, "INFO")
    assert cli(node, "--pipe", stdin=b"SET p1 1\r\nSET p2 2\r\n").endswith(
        b"errors: 0, replies: 2\n")
    assert cli(node, "MGET", "p1", "p2") == b"1\n2\n"
    assert b"unknown command" in cli(node, "ZADD", "z", "1", "m").lower() or \
        b"ERR" in cli(node, "ZADD", "z", "1", "m")


@pytest.mark.parametrize("size,clients,pipeline", [(3, 50, 1), (4096, 50, 16), (1 << 20, 8, 2)])
def test_redis_benchmark(node, size, clients, pipeline):
    count = 20000 if size < 10000 else 300
    out = subprocess.run([tool("redis-benchmark"), "-p", str(node.port), "-t", "set,get,mset",
                          "-n", str(count), "-c", str(clients), "-P", str(pipeline),
                          "-d", str(size), "-r", "100", "--csv"],
                         capture_output=True, text=True, timeout=170)
    assert out.returncode == 0, out.stderr
    rows = re.findall(r'^"(SET|GET|MSET \(10 keys\))","([\d.]+)"', out.stdout, re.M)
    assert [name for name, _ in rows] == ["SET", "GET", "MSET (10 keys)"], out.stdout
    assert "ERR" not in out.stdout + out.stderr and "Error" not in out.stdout + out.stderr


def test_hiredis(node, place):
    source, program = place / "user.c", place / "user"
    source.write_text(HIREDIS)
    if subprocess.run(["gcc", "-E", "-x", "c", "-"], input=b"#include <hiredis/hiredis.h>\n",
                      capture_output=True).returncode:
        pytest.skip("libhiredis-dev is not installed")
    subprocess.run(["gcc", "-O1", "-o", program, source, "-lhiredis"], check=True)
    for where in [str(node.port), str(node.socket)]:
        out = subprocess.run([program, where], capture_output=True, text=True, timeout=60)
        assert out.returncode == 0 and out.stdout == "all good\n", out.stderr


def test_the_parser_of_hiredis(node):
    pytest.importorskip("hiredis")
    with client(node) as c:
        values = {f"h:{i}": os.urandom(10 ** (i % 6)) for i in range(24)}
        c.mset(values)
        assert c.mget(list(values)) == list(values.values())
