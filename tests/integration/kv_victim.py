"""A process that uses a node through shared memory, to be stopped or killed from outside.

    kv_victim.py SOCKET PLAN SEED

PLAN hold: leases what the test put, says "ready N" and waits for lines on standard input: "close"
closes the connection but keeps the mappings, "check" says whether every view still has its bytes,
"release" releases. PLAN storm: attaches, puts through the window, leases, checks, releases, breaks
off, for ever; wrong bytes end it with status 3. PLAN hammer: writes two patterns in turn into the
window whose descriptor is number 3. PLAN heir: attaches, leases, and leaves the connection to a
child, which says what the node answers it after its parent's end."""

import mmap
import os
import random
import sys
import time

from kv_client import EXISTS, NOSPACE, OK, Kv, checks, key_of, value_of

WINDOW = 4 << 20


def say(text):
    print(text, flush=True)


def hold(path, _seed):
    kv = Kv(path=path)
    kv.attach()
    keys = [key_of("held", i) for i in range(4)]
    lease, views = kv.lease(keys)
    say(f"ready {len(views)}")
    for line in sys.stdin:
        match line.strip():
            case "close":
                kv.close()
                say("closed")
            case "check":
                good = all(kv.view(v) == value_of(key, v[1]) for key, v in zip(keys, views))
                say("good" if good else "wrong")
            case "reconnect":
                again = Kv(path=path)
                again.attach()
                say(f"released {again.call('CAIRN.RELEASE', lease)}")
            case "release":
                say(f"released {kv.call('CAIRN.RELEASE', lease)}")


def put_some(kv, rng):
    key = key_of("storm", rng.randrange(64))
    value = value_of(key, rng.choice([1, 5000, 200_000, 1 << 20]))
    at = rng.randrange(WINDOW - len(value))
    kv.window[at:at + len(value)] = value
    status, _ = kv.put_window(key, at, len(value), checks(value), replace=rng.random() < 0.3)
    if status not in (OK, EXISTS, NOSPACE):
        sys.exit(f"put: {status}")


def lease_some(kv, rng, held):
    keys = [key_of("storm", rng.randrange(64)) for _ in range(rng.choice([1, 2, 5]))]
    lease, views = kv.lease(keys)
    for key, view in zip(keys, views):
        if kv.view(view) != value_of(key, view[1]):
            say("wrong bytes")
            os._exit(3)
    if lease:
        held.append(lease)
    while len(held) > 8:
        if kv.call("CAIRN.RELEASE", held.pop(rng.randrange(len(held)))) != 1:
            sys.exit("a lease was not there")


def storm(path, seed):
    rng = random.Random(seed)
    kv, held = None, []
    say("ready")
    while True:
        if kv is None:
            kv = Kv(path=path)
            kv.attach(WINDOW)
            held = [lease for lease in held if not kv.call("CAIRN.RELEASE", lease)]
        if rng.random() < 0.5:
            put_some(kv, rng)
        else:
            lease_some(kv, rng, held)
        if rng.random() < 0.02:
            kv.close()
            kv.unmap()
            kv = None


def heir(path, _seed):
    kv = Kv(path=path)
    kv.attach()
    keys = [key_of("held", i) for i in range(4)]
    lease, _ = kv.lease(keys)
    parent = os.getpid()
    say("ready")
    if os.fork():
        os._exit(0)
    while os.getppid() == parent:
        time.sleep(0.01)
    time.sleep(0.3)
    say(f"renewed {kv.call('CAIRN.RENEW', lease, 1000)}")
    say(f"leased {kv.lease(keys)}")
    sys.stdin.readline()


def hammer(_path, _seed):
    window = mmap.mmap(3, os.fstat(3).st_size)
    patterns = [value_of(key_of("pattern", i), 1 << 20) for i in range(2)]
    say("ready")
    while True:
        for pattern in patterns:
            for at in range(0, len(pattern), 65536):
                window[at:at + 65536] = pattern[at:at + 65536]


if __name__ == "__main__":
    plans = {"hold": hold, "storm": storm, "hammer": hammer, "heir": heir}
    plans[sys.argv[2]](sys.argv[1], int(sys.argv[3]))
