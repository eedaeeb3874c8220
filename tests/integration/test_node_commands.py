"""Commands about connections and the node, as redis-py and a plain socket use them."""

import time

import pytest
import redis

from wire import Wire


def ask(sock, line: str) -> bytes:
    sock.sendall(line.encode() + b"\r\n")
    return sock.recv(65536)


def test_connection_commands(node):
    with node.connect() as s:
        assert ask(s, "PING") == b"+PONG\r\n"
        assert ask(s, "ping 'a b'") == b"$3\r\na b\r\n"
        assert ask(s, "ECHO hi") == b"$2\r\nhi\r\n"
        assert ask(s, "ECHO") == b"-ERR wrong number of arguments for 'echo' command\r\n"
        assert ask(s, "PING 1 2") == b"-ERR wrong number of arguments for 'ping' command\r\n"
        assert ask(s, "SELECT 0") == b"+OK\r\n"
        assert ask(s, "SELECT 1") == b"-ERR DB index is out of range\r\n"
        assert ask(s, "SELECT x") == b"-ERR value is not an integer or out of range\r\n"
        assert ask(s, "AUTH pw").startswith(b"-ERR AUTH <password> called without any password")
        assert ask(s, "AUTH default pw") == b"+OK\r\n"
        assert ask(s, "AUTH other pw").startswith(b"-WRONGPASS")
        assert ask(s, "NOSUCH a b") == (
            b"-ERR unknown command 'NOSUCH', with args beginning with: 'a' 'b' \r\n")
        assert ask(s, "RESET") == b"+RESET\r\n"
        assert ask(s, "QUIT") == b"+OK\r\n"
        assert s.recv(10) == b""


def test_hello(node):
    with node.connect() as s:
        got = ask(s, "HELLO 3 AUTH default x SETNAME me")
        assert got.startswith(b"%7\r\n$6\r\nserver\r\n$5\r\ncairn\r\n")
        assert b"$5\r\nproto\r\n:3\r\n" in got
        assert ask(s, "CLIENT GETNAME") == b"$2\r\nme\r\n"
        assert ask(s, "HELLO 4").startswith(b"-NOPROTO unsupported protocol version")
        assert ask(s, "HELLO x").startswith(b"-ERR Protocol version is not an integer")
        assert ask(s, "HELLO 2 BOGUS").startswith(b"-ERR Syntax error in HELLO option 'BOGUS'")
        assert ask(s, "HELLO 3").startswith(b"%7")
        assert ask(s, "HELLO 2").startswith(b"*14\r\n")
    assert node.redis(protocol=3).ping()


@pytest.mark.parametrize("command, part", [
    ("MULTI", "transactions are not supported"), ("SUBSCRIBE a", "publish and subscribe"),
    ("EVAL x 0", "scripts are not supported"), ("LPUSH a b", "lists are not supported"),
    ("HSET a b c", "hashes are not supported"), ("SADD a b", "sets are not supported"),
    ("ZADD a 1 b", "sorted sets are not supported"), ("XADD a * b c", "streams are not"),
    ("INCR a", "replaced as a whole"), ("SAVE", "persistence"), ("MONITOR", "not supported"),
])
def test_what_is_not_there_says_so(node, command, part):
    with node.connect() as s:
        got = ask(s, command).decode()
        assert got.startswith(f"-ERR '{command.split()[0]}': ") and part in got


def test_client_names_and_list(node):
    one = node.redis(client_name="first", decode_responses=True)
    two = node.redis(decode_responses=True)
    assert one.client_getname() == "first" and two.client_getname() is None
    assert one.client_id() != two.client_id()
    two.client_setname("second")
    listed = {c["name"]: c for c in one.client_list()}
    assert {"first", "second"} <= set(listed)
    assert listed["first"]["lib-name"] == "redis-py" and listed["first"]["cmd"] == "client"
    assert listed["second"]["addr"].startswith("127.0.0.1:")
    assert listed["second"]["laddr"] == f"127.0.0.1:{node.port}"
    assert one.client_info()["name"] == "first"
    assert [c["name"] for c in one.client_list(client_id=[str(two.client_id())])] == ["second"]
    assert one.client_list(_type="pubsub") == []
    for args, wanted in [
        (("SETNAME", "a b"), "cannot contain spaces"), (("LIST", "X"), "syntax error"),
        (("NOSUCH",), "unknown subcommand 'NOSUCH'"), (("KILL", "1.2.3.4:5"), "No such client"),
        (("ID", "x"), "wrong number of arguments for 'client.id'"),
        (("TRACKING", "on"), "not supported"), (("SETINFO", "x", "y"), "Unrecognized option 'x'"),
    ]:
        with pytest.raises(redis.ResponseError, match=wanted):
            one.execute_command("CLIENT", *args)


def test_client_kill(node):
    killer = node.redis()
    with node.connect() as victim, node.connect(tcp=True) as bystander:
        name = int(ask(victim, "CLIENT ID")[1:])
        assert killer.execute_command("CLIENT", "KILL", "ID", name) == 1
        assert victim.recv(10) == b""
        assert ask(bystander, "PING") == b"+PONG\r\n"
        address = "%s:%d" % bystander.getsockname()
        assert killer.execute_command("CLIENT", "KILL", address) == b"OK"
        assert bystander.recv(10) == b""
    with node.connect() as self:
        name = int(ask(self, "CLIENT ID")[1:])
        assert ask(self, f"CLIENT KILL ID {name} SKIPME no") == b":1\r\n"
        assert self.recv(10) == b""
    assert int(killer.info("stats")["cairn_closed_by_command"]) == 3


def test_info_as_redis_py_reads_it(node):
    r = node.redis()
    for _ in range(10):
        r.ping()
    info = r.info()
    assert info["redis_version"] == "7.0.15" and info["role"] == "master"
    assert info["process_id"] == node.process.pid and info["tcp_port"] == node.port
    assert info["connected_clients"] == 1 and info["maxclients"] == 10000
    assert info["maxmemory"] == 64 << 20 and info["used_memory"] <= info["maxmemory"]
    assert info["total_commands_processed"] >= 10 and len(info["run_id"]) == 40
    assert set(r.info("clients")) == {"connected_clients", "maxclients", "blocked_clients",
                                      "tracking_clients"}
    assert r.info("nothing") == {}
    r.set("a", "b")
    assert r.info("keyspace")["db0"]["keys"] == 1
    with pytest.raises(redis.ResponseError):
        r.execute_command("SET", "a")
    assert "cmdstat_ping" not in info
    stats = r.info("commandstats")
    assert stats["cmdstat_ping"]["calls"] >= 10 and stats["cmdstat_ping"]["failed_calls"] == 0
    assert stats["cmdstat_set"] == {"calls": 2, "failed_calls": 1}
    assert "cmdstat_ping" in r.info("all")
    text = r.execute_command("INFO", "server", "cpu")
    assert "redis_version" in text and "used_cpu_sys" in text and "role" not in text


def test_command(node):
    r = node.redis()
    count = r.command_count()
    commands = r.command()
    assert len(commands) == count == len(r.command_list())
    assert commands["get"]["arity"] == 2 and commands["get"]["first_key_pos"] == 1
    assert r.execute_command("COMMAND GETKEYS", "MSET", "a", "1", "b", "2") in (
        ["a", "b"], [b"a", b"b"])
    with node.connect() as s:
        assert ask(s, "COMMAND DOCS ping").startswith(b"*2\r\n$4\r\nping\r\n")
        assert ask(s, "COMMAND INFO nosuch") == b"*1\r\n$-1\r\n"
        assert ask(s, "COMMAND GETKEYS PING x").startswith(b"-ERR The command has no key arguments")


@pytest.mark.parametrize("command", ["CLIENT", "CONFIG", "COMMAND", "MEMORY", "OBJECT"])
def test_help(node, command):
    """The error about a subcommand names HELP, so it is there."""
    with Wire(port=node.port) as s:
        assert f"Try {command} HELP." in s.call(command, "nosuch")
        first, *rest = s.call(command, "HELP")
    assert first.startswith(f"{command} <subcommand>") and rest[1].startswith("    ")
    assert rest[-2:] == ["HELP", "    Print this help."]
    assert all(line.isascii() and len(line) <= 100 for line in rest)


def test_client_kill_by_the_address_it_came_to(node):
    with node.connect() as s, node.connect() as other:
        ask(other, "PING")
        line = ask(other, "CLIENT INFO").decode()
        here = line.split(" laddr=")[1].split(" ")[0]
        killed = int(ask(s, f"CLIENT KILL LADDR {here} SKIPME yes")[1:])
        assert killed >= 1
        assert other.recv(10) == b""
        assert ask(s, f"CLIENT KILL LADDR {here}x") == b":0\r\n"


def test_time(node):
    before = int(time.time())
    seconds, micros = node.redis().time()
    assert before <= seconds <= time.time() and 0 <= micros < 1000000
