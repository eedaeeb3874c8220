"""Random commands to a real redis-server and to cairnd, far below the budget: every reply is the
same byte for byte, but for what DIFFERENCES names."""

import os
import random
import shutil
import subprocess
import time

import pytest

from wire import Error, Wire, request

pytestmark = pytest.mark.timeout(400)

# What may differ, and why. The generator leaves these out or the comparison allows for them.
DIFFERENCES = """
TTL, EXPIRETIME and their kin: two clocks were read; 1 s.
SCAN, KEYS: the order, the cursor, and how many keys a step finds; compared as sets of a whole walk.
RANDOMKEY: another key; both have one, or neither.
MEMORY USAGE: another store; a number, or neither.
OBJECT REFCOUNT: Redis shares small integers.
Keys above 1 KiB: an error here.
Ends after the year 2554 are that year here.
"""

LONG_AGO, FAR, BEYOND = 1000, 4000000000, 16000000000

KEYS = ([b"key:%d" % i for i in range(24)] +
        [b"", b" ", b"a b", b"\x00", b"\xff\xfe", b"line\r\nend", b"KEY:1", b"k*y", b"[x]",
         b"h?llo", b"hello", b"hallo", b"\\", b"x" * 1024, "schlüssel".encode(), b"{tag}1"])
INTEGERS = [b"0", b"1", b"-1", b"-0", b"+1", b"01", b"1.0", b"", b" 1", b"1 ", b"abc", b"0x1",
            b"1e3", b"9223372036854775807", b"9223372036854775808", b"-9223372036854775808",
            b"-9223372036854775809", b"9223372036854775", b"9223372036854776", b"100", b"10000",
            b"-100", b"99999999999999999999999"]
SOON = [b"1", b"100", b"10000"]  # ends that the two would meet at different commands
PATTERNS = [b"*", b"key:*", b"key:?", b"key:1[0-9]", b"k[^e]*", b"h?llo", b"h[ae]llo", b"h[^e]llo",
            b"\\[x\\]", b"[", b"", b"*\xff*", b"k\\*y", b"\\", b"\\\\", b"*[]*", b"x*x", b"**1",
            b"[k-a]*", b"key:[1-]*", b"nothing"]


class Generator:
    """Commands as lists of words. What it makes depends on its seed alone."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.settle = False  # something ends about now: let it

    def key(self):
        return self.rng.choice(KEYS[:6] if self.rng.random() < 0.5 else KEYS)

    def keys(self, most=6):
        return [self.key() for _ in range(self.rng.randint(1, most))]

    def value(self):
        rng = self.rng
        kind = rng.random()
        if kind < 0.10:
            return b""
        if kind < 0.25:
            return b"%d" % rng.choice([0, 1, -1, 7, 2 ** 63 - 1, -2 ** 63, rng.getrandbits(40)])
        if kind < 0.60:
            return rng.randbytes(rng.randint(1, 64))
        if kind < 0.80:
            return rng.choice([b"text", b"\r\n", b"+OK\r\n", b"0" * 44, b"0" * 45, b"a" * 20,
                               b"-0"])
        if kind < 0.985:
            return rng.randbytes(rng.choice([4095, 4096, 4097, 16383, 16384, 16385, 40000]))
        return rng.randbytes(rng.choice([262144, 262145, 1 << 20]))

    def integer(self):
        return self.rng.choice(INTEGERS)

    def seconds(self, unit):
        """A time from now that is not close to any end; sometimes no time at all."""
        if self.rng.random() < 0.15:
            return self.rng.choice([i for i in INTEGERS if i not in SOON])
        return b"%d" % (self.rng.choice([100, 1000, 86400, 10 ** 8]) * unit)

    def moment(self, unit):
        if self.rng.random() < 0.15:
            return self.integer()
        return b"%d" % (self.rng.choice([1, LONG_AGO, FAR, FAR + 5]) * unit)

    def time_option(self):
        word = self.word(self.rng.choice([b"EX", b"PX", b"EXAT", b"PXAT"]))
        unit = 1000 if word.upper().startswith(b"P") else 1
        when = self.moment(unit) if word.upper().endswith(b"AT") else self.seconds(unit)
        self.settle = True
        return [word] if self.rng.random() < 0.03 else [word, when]

    def word(self, text):
        return text if self.rng.random() < 0.7 else text.lower()

    def set_options(self, names):
        words = []
        for _ in range(self.rng.choice([0, 0, 1, 1, 2, 3])):
            name = self.rng.choice(names + [b"TIME", b"TIME", b"NONSENSE"])
            words += self.time_option() if name == b"TIME" else [self.word(name)]
        return words

    # Each takes no argument and gives one command.
    def get(self):
        return [b"GET", self.key()]

    def set(self):
        return [b"SET", self.key(), self.value()] + \
            self.set_options([b"NX", b"XX", b"GET", b"KEEPTTL"])

    def set_plain(self):
        return [b"SET", self.key(), self.value()]

    def setnx(self):
        return [b"SETNX", self.key(), self.value()]

    def setex(self):
        name, unit = self.rng.choice([(b"SETEX", 1), (b"PSETEX", 1000)])
        self.settle = True
        return [name, self.key(), self.seconds(unit), self.value()]

    def getset(self):
        return [b"GETSET", self.key(), self.value()]

    def getdel(self):
        return [b"GETDEL", self.key()]

    def getex(self):
        return [b"GETEX", self.key()] + self.set_options([b"PERSIST", b"KEEPTTL"])

    def getrange(self):
        bounds = [self.rng.choice([b"%d" % self.rng.randint(-50, 50), b"0", b"-1", b"20000",
                                   self.integer()]) for _ in range(2)]
        return [self.rng.choice([b"GETRANGE", b"SUBSTR"]), self.key()] + bounds

    def one_key(self):
        return [self.rng.choice([b"STRLEN", b"TYPE", b"PERSIST", b"GET"]), self.key()]

    def many_keys(self):
        return [self.rng.choice([b"MGET", b"EXISTS", b"TOUCH", b"MGET"])] + self.keys()

    def delete(self):
        return [self.rng.choice([b"DEL", b"UNLINK"])] + self.keys(3)

    def mset(self):
        words = [self.rng.choice([b"MSET", b"MSET", b"MSETNX"])]
        for key in self.keys():
            words += [key, self.value()[:5000]]
        return words[:-1] if self.rng.random() < 0.1 else words

    def expire(self):
        name, unit, at = self.rng.choice([(b"EXPIRE", 1, False), (b"PEXPIRE", 1000, False),
                                          (b"EXPIREAT", 1, True), (b"PEXPIREAT", 1000, True)])
        when = self.moment(unit) if at else self.rng.choice(
            [self.seconds(unit), self.seconds(unit), b"-1", b"0"])
        self.settle = True
        options = [self.word(self.rng.choice([b"NX", b"XX", b"GT", b"LT", b"QQ"]))
                   for _ in range(self.rng.choice([0, 0, 1, 1, 2]))]
        if options and self.rng.random() < 0.9:
            # Ends that are compared: no two close to each other, none beyond 2554.
            when = b"%d" % ((self.rng.randint(200, 10 ** 7) + (FAR if at else 0)) * unit)
        elif options:
            when = self.rng.choice([b"x", b"-1", b"9223372036854775808"])
        return [name, self.key(), when] + options

    def ttl(self):
        return [self.rng.choice([b"TTL", b"PTTL", b"EXPIRETIME", b"PEXPIRETIME"]), self.key()]

    def dbsize(self):
        return [b"DBSIZE"]

    def keys_command(self):
        return [b"KEYS", self.rng.choice(PATTERNS)]

    def scan(self):
        words = [b"SCAN", b"0"]
        if self.rng.random() < 0.5:
            words += [self.word(b"MATCH"), self.rng.choice(PATTERNS)]
        if self.rng.random() < 0.5:
            words += [self.word(b"COUNT"), self.rng.choice([b"1", b"3", b"10", b"1000",
                                                            self.integer()])]
        if self.rng.random() < 0.3:
            words += [self.word(b"TYPE"), self.rng.choice([b"string", b"STRING", b"list", b"zset"])]
        if self.rng.random() < 0.05:
            words[1] = self.rng.choice([b"x", b"", b" 1", b"1x", b"99999999999999999999999"])
        return words[:-1] if self.rng.random() < 0.05 else words

    def random_key(self):
        return [b"RANDOMKEY"]

    def about(self):
        return self.rng.choice([
            [b"OBJECT", b"ENCODING", self.key()], [b"OBJECT", b"encoding"], [b"OBJECT"],
            [b"OBJECT", b"nonsense", self.key()], [b"MEMORY", b"USAGE", self.key()],
            [b"MEMORY", b"usage", self.key(), b"SAMPLES", self.integer()],
            [b"MEMORY", b"usage", self.key(), b"nonsense", b"1"], [b"MEMORY", b"usage"],
            [b"MEMORY", b"nonsense"], [b"MEMORY"]])

    def flush(self):
        words = [self.rng.choice([b"FLUSHDB", b"FLUSHALL"])]
        return words + self.rng.choice([[], [b"ASYNC"], [b"sync"], [b"NONSENSE"],
                                        [b"SYNC", b"SYNC"]])

    def simple(self):
        return self.rng.choice([[b"PING"], [b"PING", b"hello"], [b"ECHO", self.value()],
                                [b"SELECT", b"0"], [b"PING", b"a", b"b"], [b"ECHO"]])

    WEIGHTS = [("get", 14), ("set", 14), ("set_plain", 8), ("setnx", 3), ("setex", 3),
               ("getset", 3), ("getdel", 3), ("getex", 5), ("getrange", 6), ("one_key", 6),
               ("many_keys", 6), ("delete", 3), ("mset", 4), ("expire", 8), ("ttl", 8),
               ("dbsize", 2), ("keys_command", 2), ("scan", 2), ("random_key", 1), ("about", 3),
               ("flush", 0.4), ("simple", 2)]

    def command(self):
        names, weights = zip(*self.WEIGHTS)
        words = getattr(self, self.rng.choices(names, weights)[0])()
        if self.rng.random() < 0.03:  # too few or too many
            words = words[:self.rng.randint(1, len(words))] if self.rng.random() < 0.5 \
                else words + [b"more"] * self.rng.randint(1, 2)
        if self.rng.random() < 0.2:
            words[0] = words[0].lower()
        return words

    def batch(self):
        """Commands that are sent at once, ended by those that let what ends now be met."""
        self.settle = False
        count = self.rng.choice([1, 1, 1, 2, 5, 20, 50])
        return [self.command() for _ in range(count)]


def walk(wire, words):
    """A whole SCAN: its keys, or the error of its first step."""
    found, cursor = set(), words[1]
    for _ in range(10000):
        answer = wire.call(words[0], cursor, *words[2:])
        if isinstance(answer, Error):
            return answer
        found.update(answer[1])
        cursor = answer[0]
        if cursor == b"0":
            return found
    raise AssertionError("SCAN does not end")


class Pair:
    """The two servers, asked the same."""

    def __init__(self, real, ours):
        self.real, self.ours = real, ours
        self.count = 0

    def same(self, words, real, ours):
        name = words[0].upper()
        self.count += 1
        if real[0] == ours[0]:
            return True
        (_, want), (_, got) = real, ours
        if isinstance(want, Error) or isinstance(got, Error):
            return False
        if name in (b"TTL", b"PTTL", b"EXPIRETIME", b"PEXPIRETIME"):
            second = 1000 if name.startswith(b"P") else 1
            if min(want, got) > BEYOND * second:
                return True
            return min(want, got) > 0 and abs(want - got) <= 10 * second
        if name == b"KEYS":
            return sorted(want) == sorted(got)
        if name in (b"RANDOMKEY", b"MEMORY"):
            return (want is None) == (got is None)
        return False

    def run(self, batch):
        data = b"".join(request(*words) for words in batch)
        for wire in (self.real, self.ours):
            wire.send(data)
        for words in batch:
            real, ours = self.real.reply(), self.ours.reply()
            shown = [w if len(w) < 100 else w[:50] + b"... %d bytes" % len(w) for w in words]
            assert self.same(words, real, ours), \
                f"{shown}: redis says {real[0][:300]!r}, cairnd says {ours[0][:300]!r}"

    def settle(self):
        """What has just ended is met by both, so that both count without it."""
        time.sleep(0.003)
        self.run([[b"EXISTS"] + KEYS])

    def ask(self, generator):
        batch = generator.batch()
        walks = [words for words in batch if words[0].upper() == b"SCAN" and len(words) > 1]
        batch = [words for words in batch if words not in walks]
        # These see keys whose end has come until somebody asks for them.
        for part in split(batch, (b"DBSIZE", b"RANDOMKEY", b"MEMORY")):
            self.run(part)
            if generator.settle:
                self.settle()
        for words in walks:
            real, ours = walk(self.real, words), walk(self.ours, words)
            assert real == ours, f"{words}: redis says {real!r}, cairnd says {ours!r}"
            self.count += 1


def split(batch, names):
    part = []
    for words in batch:
        if words[0].upper() in names and part:
            yield part
            part = []
        part.append(words)
    if part:
        yield part


@pytest.fixture
def redis_port(place):
    """A real redis-server that keeps nothing."""
    program = shutil.which("redis-server")
    if not program:
        pytest.skip("redis-server is not installed")
    path = place / "redis.sock"
    server = subprocess.Popen([program, "--port", "0", "--unixsocket", path, "--save", "",
                               "--dir", place, "--loglevel", "warning"])
    deadline = time.monotonic() + 20
    while not path.exists():
        assert server.poll() is None and time.monotonic() < deadline, "redis-server does not start"
        time.sleep(0.02)
    yield path
    server.terminate()
    server.wait(20)


@pytest.mark.parametrize("proto", [2, 3])
def test_replies_are_those_of_redis(node, redis_port, proto, full):
    seed = int(os.environ.get("CAIRN_SEED", random.getrandbits(32)))
    print(f"CAIRN_SEED={seed}")
    generator = Generator(seed)
    with Wire(path=redis_port, proto=proto) as real, Wire(port=node.port, proto=proto) as ours:
        pair = Pair(real, ours)
        while pair.count < (60000 if full else 8000):
            pair.ask(generator)


# One line a mistake, or a command that changes nothing. The random ones above are of strings.
SAME = r"""
CLIENT | CLIENT NOSUCH | CLIENT ID x | CLIENT HELP x | CLIENT SETNAME | CLIENT GETREDIR x
CLIENT LIST x | CLIENT LIST TYPE x | CLIENT LIST TYPE pubsub | CLIENT LIST ID | CLIENT LIST ID x
CLIENT LIST ID 0 | CLIENT LIST ID -1 | CLIENT LIST ID 99999999 | CLIENT INFO x
CLIENT KILL | CLIENT KILL x | CLIENT KILL ID | CLIENT KILL ID x | CLIENT KILL ID 0
CLIENT KILL ID 99999999 | CLIENT KILL ID 99999999 FOO x | CLIENT KILL ID 99999999 ADDR
CLIENT KILL ADDR 1.2.3.4:5 | CLIENT KILL LADDR 1.2.3.4:5 | CLIENT KILL LADDR 1.2.3.4:5 ID 1
CLIENT KILL TYPE x | CLIENT KILL TYPE master | CLIENT KILL TYPE replica | CLIENT KILL USER x
CLIENT KILL USER default ID 99999999 | CLIENT KILL ID 99999999 SKIPME x
CONFIG | CONFIG NOSUCH | CONFIG GET | CONFIG SET | CONFIG SET a | CONFIG SET a b c
CONFIG SET nosuch 1 | CONFIG RESETSTAT x | CONFIG HELP x
COMMAND NOSUCH | COMMAND NOSUCH x | COMMAND COUNT x | COMMAND LIST x | COMMAND HELP x
COMMAND GETKEYS | COMMAND GETKEYS get | COMMAND GETKEYS get a | COMMAND GETKEYS nosuch a
COMMAND GETKEYS get a b | COMMAND GETKEYS mset a b c d | COMMAND INFO nosuch
MEMORY | MEMORY NOSUCH | MEMORY USAGE | MEMORY HELP x | OBJECT NOSUCH a | OBJECT HELP x
SHUTDOWN x | SHUTDOWN SAVE NOSAVE | SHUTDOWN ABORT | SHUTDOWN ABORT NOW | SHUTDOWN NOSAVE x
SELECT | SELECT x | SELECT 1.5 | SELECT -1 | SELECT 99 | SELECT 99999999999 | SELECT -99999999999
HELLO x | HELLO 1 | HELLO 4 | HELLO 2 AUTH | HELLO 2 AUTH a | HELLO 2 SETNAME | HELLO 2 FOO
AUTH | AUTH x | AUTH a b | AUTH a b c | RESET x | TIME x | DBSIZE x | ECHO | PING a b
NOSUCH | NOSUCH a b | NOSUCH {} | NOSUCH {}{} | NOSUCH {} {} {} | NOSUCH {} {}{} x | {} a
""".format(*["x" * 100] * 10)


def test_errors_are_those_of_redis(node, redis_port):
    version = subprocess.run(["redis-server", "--version"], capture_output=True, text=True).stdout
    if "v=7.0." not in version:
        pytest.skip(f"the texts are those of Redis 7.0, not of {version.strip()}")
    with Wire(path=redis_port) as real, Wire(port=node.port) as ours:
        pair = Pair(real, ours)
        for line in SAME.strip().split("\n"):
            for words in line.split(" | "):
                pair.run([words.encode().split()])
