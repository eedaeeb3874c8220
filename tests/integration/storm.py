"""A client of a node as a process of its own, to be killed or stopped at any moment: random
commands on strings and chunks, whose ledger says afterwards what may be there. Ends with status 1
and a sentence when it read what may not be, or waited longer than --timeout for any answer.

    storm.py --folder=DIR --number=N --port=P --socket=PATH --seed=S"""

import argparse
import fcntl
import os
import random
import signal
import struct
import sys
import time
from pathlib import Path

import kv_client as kv
from kv_client import Kv, get_item, key_of
from ledger import Ledger, Wrong, length_of, now_ms, run_number, value_of
from wire import Error, Gone, request

STRINGS, REPLACED, NAMED = 120, 40, 64  # keys of each kind, in this order in the ledger
WINDOW = 1 << 21
LEASES_HELD = 6
CHAIN = 8
# Answers of a node that is full or whose disk fails. Everything else is a mistake.
REFUSALS = ("OOM ", "BUSY ", "ERR the disk ")
REFUSED = (kv.BUSY, kv.TIMEOUT, kv.NOSPACE, -30)


def keys_of(number: int) -> list[bytes]:
    return ([b"storm:%d:%d" % (number, i) for i in range(STRINGS)] +
            [key_of("storm", number, "replaced", i) for i in range(REPLACED)] +
            [key_of("storm", number, "named", i) for i in range(NAMED)])


def ledger_of(folder: Path, number: int, create=False) -> Ledger:
    return Ledger(folder / f"ledger{number}", keys_of(number), create)


class Storm:
    def __init__(self, a):
        self.a, self.rng = a, random.Random(a.seed)
        self.ledger = ledger_of(a.folder, a.number)
        self.keys = self.ledger.keys
        self.others = [ledger_of(a.folder, int(p.name[6:])) for p in a.folder.glob("ledger*")
                       if p.name != f"ledger{a.number}"]
        self.gate = open(a.folder / "gate", "r")
        self.kv = None
        self.run = 0
        self.leases = []  # (lease, [(view, bytes)...])
        self.ending = False
        signal.signal(signal.SIGTERM, self.end)

    def end(self, *_):
        self.ending = True

    # --- the connection ---

    def connect(self):
        """Tries for as long as a restart may take."""
        until = time.monotonic() + self.a.timeout
        while not self.ending:
            try:
                if self.a.local:
                    self.kv = Kv(path=self.a.socket, timeout=self.a.timeout)
                else:
                    self.kv = Kv(self.a.port, timeout=self.a.timeout)
                self.greet()
                return
            except TimeoutError:
                raise
            except (OSError, Gone):
                self.drop()
                if time.monotonic() > until:
                    raise Wrong(f"no node for {self.a.timeout} s") from None
                time.sleep(0.005)

    def greet(self):
        hello = self.kv.call("CAIRN.HELLO", 1)
        run = run_number(dict(zip(hello[::2], hello[1::2]))[b"run_id"])
        if run != self.run:
            self.leases = []
        self.run = run
        if self.a.local and self.rng.random() < 0.8:
            answer = self.kv.attach(self.rng.choice([0, WINDOW]))
            assert not isinstance(answer, Error), answer
            if self.leases:
                self.kv.call("CAIRN.RELEASE", *[lease for lease, _ in self.leases])
        self.leases = []

    def drop(self):
        if self.kv:
            self.kv.unmap()
            self.kv.close()
        self.kv = None

    def live(self):
        while not self.ending:
            try:
                if not self.kv:
                    self.connect()
                    continue
                while (self.a.folder / "hold").exists() and not self.ending:
                    time.sleep(0.002)  # a lock that many share would never be free for one
                fcntl.flock(self.gate, fcntl.LOCK_SH)
                try:
                    self.step()
                finally:
                    fcntl.flock(self.gate, fcntl.LOCK_UN)
            except TimeoutError:
                raise Wrong(f"no answer for {self.a.timeout} s") from None
            except (OSError, Gone):
                self.drop()
        self.drop()

    def step(self):
        if self.rng.random() < self.a.strings:
            self.strings()
        else:
            self.rng.choice(self.CHUNK_STEPS)(self)

    # --- strings: pipelines of one to six commands on different keys ---

    def strings(self):
        numbers = self.rng.sample(range(STRINGS), self.rng.randint(1, 6))
        calls = [call for i in numbers if (call := self.string(i))]
        self.kv.send(b"".join(request(*words) for words, _ in calls))
        for words, finish in calls:
            answer = self.kv.value()
            if isinstance(answer, Error) and not answer.startswith(REFUSALS):
                raise Wrong(f"{words[0]} {words[1]!r}: {answer}")
            finish(answer)

    def string(self, i):
        """(words, what to do with the answer) of one command; a change is entered already."""
        key, kind = self.keys[i], self.rng.random()
        if kind < 0.35 or not self.ledger.usable(i, self.run):
            return self.string_read(i)
        if kind < 0.50 or self.ledger.must_delete(i):
            self.ledger.begin_drop(i, self.run)
            words = self.rng.choice([("DEL", key), ("UNLINK", key), ("PEXPIREAT", key, 1000)])
            return words, lambda answer: self.string_dropped(i, answer)
        generation = self.ledger.next(i)
        value = value_of(key, generation)
        self.ledger.begin(i, generation, self.run)
        if kind < 0.56:
            ms = self.rng.randint(1, 400)
            return (("SET", key, value, "PX", ms),
                    lambda answer: self.string_set(i, generation, answer, now_ms() + ms))
        if kind < 0.62:
            return ("GETSET", key, value), lambda answer: self.string_swapped(i, generation, answer)
        return ("SET", key, value), lambda answer: self.string_set(i, generation, answer, 0)

    def string_read(self, i):
        key, asked = self.keys[i], now_ms()
        if self.rng.random() < 0.1 and self.others:
            other = self.rng.choice(self.others)
            j = self.rng.randrange(STRINGS)
            return ("GET", other.keys[j]), lambda answer: other.judge_foreign(j, self.read(answer))
        return ("GET", key), lambda answer: self.ledger.judge(i, self.read(answer), asked)

    def read(self, answer):
        return None if isinstance(answer, Error) else answer

    def string_set(self, i, generation, answer, expires_ms):
        if answer == "OK":
            self.ledger.done(i, generation, expires_ms)
        else:
            self.ledger.refused(i)

    def string_swapped(self, i, generation, answer):
        if isinstance(answer, Error):
            self.ledger.refused(i)
            return
        self.ledger.judge(i, answer, begun=0)  # the new one cannot be what was there before
        self.ledger.done(i, generation)

    def string_dropped(self, i, answer):
        if isinstance(answer, Error):
            self.ledger.refused(i)
        else:
            self.ledger.dropped(i)

    # --- chunks ---

    def chunk_number(self):
        return self.rng.randrange(STRINGS, len(self.keys))

    def put(self):
        i = self.chunk_number()
        if not self.ledger.usable(i, self.run):
            return
        if self.ledger.must_delete(i):
            self.delete(i)
            return
        key, replaced = self.keys[i], i < STRINGS + REPLACED
        generation = self.ledger.next(i) if replaced else 1
        self.ledger.set(i, "last", generation)
        value = value_of(key, generation)
        expires = replaced and self.rng.random() < 0.1
        expires_ms = now_ms() + self.rng.randint(1, 400) if expires else 0
        item = {"replace": replaced, "expires_ns": expires_ms * 1_000_000}
        if not replaced and i > STRINGS + REPLACED and i % CHAIN:
            item["parent"] = self.keys[i - 1]
        self.ledger.begin(i, generation, self.run)
        if self.kv.window and self.rng.random() < 0.6:
            offset = self.rng.randrange(WINDOW - len(value))
            self.kv.window[offset:offset + len(value)] = value
            answer = self.kv.put_window(key, offset, len(value), kv.checks(value), **item)
        else:
            answer = self.kv.put(key, value, side=b"side" * self.rng.randint(0, 3), **item)
        self.put_done(i, generation, answer, expires_ms)

    def put_done(self, i, generation, answer, expires_ms):
        if isinstance(answer, Error):
            if not answer.startswith(REFUSALS):
                raise Wrong(f"CAIRN.PUT: {answer}")
            self.ledger.refused(i)
        elif answer[0] == kv.OK or (answer[0] == kv.EXISTS and i >= STRINGS + REPLACED):
            self.ledger.done(i, generation, expires_ms)
        elif answer[0] in REFUSED:
            self.ledger.refused(i)
        else:
            raise Wrong(f"CAIRN.PUT answers {answer}")

    def get(self):
        numbers = self.rng.sample(range(STRINGS, len(self.keys)), self.rng.randint(1, 6))
        numbers = [i for i in numbers if self.expected(i)]
        if not numbers:
            return
        asked = now_ms()
        answers = self.kv.get(*[get_item(self.keys[i], length_of(self.keys[i], self.expected(i)))
                                for i in numbers])
        if isinstance(answers, Error):
            raise Wrong(f"CAIRN.GET: {answers}")
        for i, (status, cause, data) in zip(numbers, answers):
            if status not in (kv.OK, kv.MISS, *REFUSED) or cause in ("checksum", "header"):
                raise Wrong(f"CAIRN.GET answers status {status}, cause {cause}")
            self.ledger.judge(i, data, asked)

    def expected(self, i):
        """A generation that may be there; 0: none."""
        return self.ledger.get(i, "current") or self.ledger.get(i, "begun")

    def get_range(self):
        i = self.chunk_number()
        key, generation = self.keys[i], self.ledger.get(i, "current")
        if not generation or self.ledger.must_delete(i):
            return
        whole = value_of(key, generation)
        offset = self.rng.randrange(len(whole))
        length = self.rng.randint(1, len(whole) - offset)
        (_status, _cause, data), = self.kv.get(get_item(key, length, offset=offset, flags=kv.RANGE))
        if data is not None and data != whole[offset:offset + length]:
            raise Wrong(f"{key.hex()}: bytes {offset} to {offset + length} of another value")

    def delete(self, i=None):
        i = self.chunk_number() if i is None else i
        if not self.ledger.usable(i, self.run):
            return
        self.ledger.begin_drop(i, self.run)
        answer = self.kv.call("CAIRN.DELETE", 3000, self.keys[i])
        if isinstance(answer, Error):
            raise Wrong(f"CAIRN.DELETE: {answer}")
        if answer[0] in (kv.OK, kv.MISS):
            self.ledger.dropped(i)
        elif answer[0] in REFUSED:
            self.ledger.refused(i)
        else:
            raise Wrong(f"CAIRN.DELETE answers {answer}")

    def chain(self):
        first = STRINGS + REPLACED + CHAIN * self.rng.randrange(NAMED // CHAIN)
        return list(range(first, first + self.rng.randint(1, CHAIN)))

    def lease(self):
        """What is leased is there until it is released, whatever becomes of its key."""
        if len(self.leases) >= LEASES_HELD:
            self.release()
            return
        numbers = self.chain()
        answer = self.kv.lease([self.keys[i] for i in numbers])
        if isinstance(answer, Error):
            raise Wrong(f"CAIRN.LEASE: {answer}")
        lease, views = answer
        seen = []
        for i, view in zip(numbers, views):
            if self.kv.arena:
                data = self.kv.view(view)
                if data is None:
                    raise Wrong(f"{self.keys[i].hex()}: leased, and another record is there")
                self.ledger.judge(i, data)
                seen.append((view, data))
        if lease:
            self.ledger.count("leases")
            self.leases.append((lease, seen))

    def release(self):
        if not self.leases:
            return
        lease, seen = self.leases.pop(self.rng.randrange(len(self.leases)))
        for view, data in seen:
            if self.kv.view(view) != data:
                raise Wrong("bytes changed under a lease")
        answer = self.kv.call("CAIRN.RELEASE", lease)
        if answer != 1:
            raise Wrong(f"CAIRN.RELEASE of a lease that is held answers {answer}")

    def hints(self):
        numbers = self.chain()
        keys = b"".join(self.keys[i] for i in numbers)
        word = self.rng.choice(["CAIRN.LOOKUP", "CAIRN.PREFETCH", "CAIRN.WHYMISS", "CAIRN.LENGTH",
                                "CAIRN.SIDE", "CAIRN.PIN", "CAIRN.FLUSH"])
        if word == "CAIRN.LOOKUP":
            held, resident = self.kv.call(word, keys)
            if not 0 <= resident <= held <= len(numbers):
                raise Wrong(f"CAIRN.LOOKUP answers {held} {resident}")
        elif word in ("CAIRN.WHYMISS", "CAIRN.LENGTH"):
            self.kv.call(word, keys[:32])
        elif word == "CAIRN.SIDE":
            self.kv.call(word, 1000, keys[:32])
        elif word == "CAIRN.PIN":
            self.kv.call(word, keys)
            self.kv.call("CAIRN.UNPIN", keys)
        elif word == "CAIRN.PREFETCH":
            self.kv.call(word, keys)
        elif self.rng.random() < 0.1:
            self.kv.call(word, 4000)

    CHUNK_STEPS = [put] * 6 + [get] * 6 + [get_range] * 2 + [delete] + [lease] * 3 + \
        [release] * 2 + [hints] * 2


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--number", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--local", action="store_true")
    parser.add_argument("--strings", type=float, default=0.5)
    parser.add_argument("--timeout", type=float, default=20)
    Storm(parser.parse_args()).live()


if __name__ == "__main__":
    try:
        main()
    except Wrong as wrong:
        sys.exit(f"storm: {wrong}")
