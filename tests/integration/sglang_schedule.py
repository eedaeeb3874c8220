"""Random schedules of what SGLang's threads do with their storage, against an oracle.

What a page must hold is a function of its name and of what made it (the weights, the rank),
so every byte that a get calls good can be judged without knowing what was stored, lost or refused.
Each rank has three threads, as in SGLang: two that load and one that saves, each with host pages of
its own, which nobody else may touch."""

import functools
import hashlib
import random
import threading
import time

import sglang_pools as sg
import torch
from cairn import BusyError, CorruptError, TimeoutError
from sglang.srt.mem_cache.hicache_storage import (HiCacheStorageExtraInfo, PoolHitPolicy, PoolName,
                                                  PoolTransfer, PoolTransferResult)

BATCH = 8
PATIENCE = 300  # seconds for what a test is about to happen
OTHERS = (PoolName.SWA, PoolName.MAMBA)


class Wrong(AssertionError):
    pass


class Faulty:
    """A store whose calls fail, dawdle, or answer that nothing is there or that all is damaged."""

    FAILURES = (OSError, MemoryError, ValueError, BusyError, CorruptError, TimeoutError, KeyError)

    def __init__(self, store, rng, share):
        self._store, self._rng, self._share = store, rng, share
        self.value_max, self.injected = store.value_max, 0

    def __getattr__(self, name):
        return getattr(self._store, name)

    def _trouble(self):
        if self._rng.random() >= self._share:
            return False
        self.injected += 1
        if self._rng.random() < 0.3:
            time.sleep(self._rng.random() * 0.01)
            return False
        return True

    def _fail(self):
        raise self._rng.choice(self.FAILURES)("injected")

    def lookup(self, keys):
        if self._trouble():
            self._fail()
        held = self._store.lookup(keys)
        # A hint may be wrong in both directions.
        return self._rng.randrange(len(keys) + 1) if self._trouble() else held

    def get_runs(self, keys, *args, **kwargs):
        before = self._trouble()
        if before and self._rng.random() < 0.5:
            self._fail()
        status = self._store.get_runs(keys, *args, **kwargs)
        if before:  # the bytes are there and nobody may say so
            self._fail()
        return status

    def put_runs(self, keys, *args, **kwargs):
        if self._trouble():
            self._fail()
        status = self._store.put_runs(keys, *args, **kwargs)
        if self._trouble():
            self._fail()
        return status


@functools.lru_cache(maxsize=100_000)
def right(kind, shape, made_by, name):
    """What the page `name` holds, as bytes of each tensor of a pool of that shape."""
    pool = _scratch(kind, shape)
    with _scratch_lock:
        write(pool, 0, made_by, name)
        return tuple(sg.page_bytes(pool, 0))


_scratch_lock = threading.Lock()


@functools.lru_cache
def _scratch(kind, shape):
    return make(kind, shape, 32)  # SGLang's pools want more pages than layers


def write(pool, page, made_by, name):
    seed = hashlib.sha256(f"{made_by} {name}".encode()).digest()
    sg.fill(pool, page, random.Random(seed))


def make(kind, shape, pages):
    mla, layout, page, layers = shape
    if kind == "mamba":
        return sg.mamba(slots=pages)
    if kind == "swa":
        layers = 1
    return (sg.mla if mla else sg.mha)(layout, page=page, pages=pages, layers=layers)


class Rank:
    """One tensor-parallel rank: its pools, its storage, and what its pages are made by."""

    def __init__(self, shape, rank, ranks, attach, uri, faults):
        self.shape, self.rank, self.ranks = shape, rank, ranks
        self.mla = shape[0]
        self.pools = {kind: make(kind, shape, 3 * 2 * BATCH) for kind in ("kv", "swa", "mamba")}
        self._attach, self._uri, self._faults = attach, uri, faults
        self.faulty = []
        self.begin()

    def begin(self):
        self.storage = self._attach(
            self.pools["kv"], self._uri, extra={"weights": "revision 1"}, is_mla_model=self.mla,
            tp_rank=self.rank, tp_size=self.ranks,
            others=[(PoolName(kind), pool) for kind, pool in self.pools.items()])
        self.weights, self.older = 1, []
        if self._faults and self.inner._shared.store is not None:
            self.faulty.append(Faulty(self.inner._shared.store, random.Random(self.rank),
                                      self._faults))
            shared = self.inner._shared
            self.inner._shared = type("Shared", (), {"store": self.faulty[-1],
                                                     "real": shared})()

    @property
    def inner(self):
        return getattr(self.storage, "_backend", self.storage)

    def end(self):
        shared = self.inner._shared
        self.inner._shared = getattr(shared, "real", shared)
        self.storage.close()

    def made_by(self, kind):
        """By which weights a page may be made. As SGLang has it: MLA's pages are the same on all
        ranks, a state is each rank's own."""
        rank = 0 if self.mla and kind != "mamba" else self.rank
        # New weights have no name: from then on each rank is alone with what it computes.
        return [f"{kind} {rank} {weights}" for weights in (self.weights, *self.older)]

    def weights_change(self, number):
        self.inner.weights_changed()
        # Until SGLang flushes it goes on with what it has of the old ones.
        self.older.append(self.weights)
        self.weights = number

    def flush(self):
        self.inner.flushed()
        self.older = []


class Worker(threading.Thread):
    """One of a rank's threads: its host pages are [first, first + 2 * BATCH) of every pool."""

    def __init__(self, rank, number, saves, prompts, rng, gate, steps):
        super().__init__(daemon=True)
        self.rank, self.saves, self.prompts, self.rng = rank, saves, prompts, rng
        self.first, self.gate, self.left = number * 2 * BATCH, gate, steps
        self.good = self.bad = self.saved = self.longest = 0
        self.failure = None

    def run(self):
        try:
            while (self.left > 0 or self.gate.lacking) and not self.gate.stop.is_set():
                with self.gate.step():
                    begun = time.monotonic()
                    self.step()
                    self.longest = max(self.longest, time.monotonic() - begun)
                self.left -= 1
        except BaseException as failure:
            self.failure = failure
            self.gate.stop.set()

    def step(self):
        turn = self.rng.random()
        if turn < 0.03:
            self.odd()
        elif turn < 0.25:
            self.ask()
        elif self.saves:
            self.save("kv") if turn < 0.6 else self.save_others()
        else:
            self.load("kv") if turn < 0.6 else self.load_others()

    def span(self):
        """Some pages of a prompt, in order, and the ones before them."""
        prompt = self.rng.choice(self.prompts)
        at = self.rng.randrange(len(prompt))
        names = prompt[at:at + self.rng.randrange(1, BATCH + 1)]
        known = self.rng.random() < 0.5
        return names, HiCacheStorageExtraInfo(prefix_keys=prompt[:at] if known else None)

    def places(self, count):
        return [self.first + p for p in self.rng.sample(range(2 * BATCH), count)]

    def save(self, kind):
        names, info = self.span()
        pool, pages = self.rank.pools[kind], self.places(len(names))
        for page, name in zip(pages, names):
            write(pool, page, self.rng.choice(self.rank.made_by(kind)), name)
        before = self.mine(pool)
        self.answer(self.rank.storage.batch_set_v1(names, sg.slots(pool, *pages), info), names)
        self.untouched(pool, before, ())

    def save_others(self):
        names, info = self.span()
        transfers, held = [], []
        for kind in self.some():
            pool, pages = self.rank.pools[kind.value], self.places(len(names))
            for page, name in zip(pages, names):
                write(pool, page, self.rng.choice(self.rank.made_by(kind.value)), name)
            transfers.append(PoolTransfer(kind, keys=names, host_indices=sg.slots(pool, *pages)))
            held.append((pool, self.mine(pool)))
        results = self.rank.storage.batch_set_v2(transfers, info)
        self.answers(results, transfers)
        for pool, before in held:
            self.untouched(pool, before, ())

    def load(self, kind):
        names, info = self.span()
        pool, pages = self.rank.pools[kind], self.places(len(names))
        for page in pages:
            sg.fill(pool, page, self.rng)
        before = self.mine(pool)
        good = self.rank.storage.batch_get_v1(names, sg.slots(pool, *pages), info)
        self.answer(good, names)
        self.judge(kind, pool, pages, names, good)
        self.untouched(pool, before, pages)

    def load_others(self):
        names, info = self.span()
        transfers, where = [], []
        for kind in self.some():
            pool, pages = self.rank.pools[kind.value], self.places(len(names))
            for page in pages:
                sg.fill(pool, page, self.rng)
            transfers.append(PoolTransfer(kind, keys=names, host_indices=sg.slots(pool, *pages)))
            where.append((kind.value, pool, pages, self.mine(pool)))
        results = self.rank.storage.batch_get_v2(transfers, info)
        self.answers(results, transfers)
        for kind, pool, pages, before in where:
            self.judge(kind, pool, pages, names, results[kind])
            self.untouched(pool, before, pages)

    def ask(self):
        prompt = self.rng.choice(self.prompts)
        held = self.rank.storage.batch_exists(prompt)
        if type(held) is not int or not 0 <= held <= len(prompt):
            raise Wrong(f"batch_exists said {held!r}")
        asked = [PoolTransfer(kind, keys=prompt[:self.rng.randrange(4)],
                              hit_policy=self.rng.choice(list(PoolHitPolicy)))
                 for kind in self.some()]
        found = self.rank.storage.batch_exists_v2(prompt, asked)
        if type(found) is not PoolTransferResult:
            raise Wrong(f"batch_exists_v2 said {found!r}")
        ends = found.restorable_prefix_pages or []
        if found.kv_hit_pages != max(ends, default=0) or not set(ends) <= set(
                range(1, len(prompt) + 1)):
            raise Wrong(f"{found}")

    def odd(self):
        """What SGLang should not ask for."""
        storage, pool = self.rank.storage, self.rank.pools["kv"]
        names, info = self.span()
        before = self.mine(pool)
        bad = self.rng.choice((None, torch.arange(len(names) * pool.page_size + 1),
                               sg.slots(pool, *[0] * len(names)) + 10**6,
                               sg.slots(pool, *[0] * len(names)) - 10**6))
        for call in (storage.batch_get_v1, storage.batch_set_v1):
            if call(names, bad, info) != [False] * len(names):
                raise Wrong("slots that are no pages were taken")
        lost = PoolTransfer(PoolName.DRAFT, keys=names, host_indices=sg.slots(pool))
        for call in (storage.batch_get_v2, storage.batch_set_v2):
            self.answers(call([lost]), [lost], only=False)
        self.untouched(pool, before, ())

    def some(self):
        return self.rng.sample(OTHERS, self.rng.randrange(1, len(OTHERS) + 1))

    # --- judging ---

    def answer(self, results, names, only=None):
        if type(results) is not list or len(results) != len(names) or any(
                type(r) is not bool or only is not None and r is not only for r in results):
            raise Wrong(f"for {len(names)} pages the answer was {results!r}")
        if self.saves:
            self.saved += sum(results)

    def answers(self, results, transfers, only=None):
        if type(results) is not dict or set(results) != {t.name for t in transfers}:
            raise Wrong(f"for {[t.name for t in transfers]} the answer was {results!r}")
        for transfer in transfers:
            self.answer(results[transfer.name], transfer.keys, only)

    def judge(self, kind, pool, pages, names, good):
        for page, name, ok in zip(pages, names, good):
            self.good += ok
            self.bad += not ok
            if ok and tuple(sg.page_bytes(pool, page)) not in [
                    right(kind, self.rank.shape, made_by, name)
                    for made_by in self.rank.made_by(kind)]:
                raise Wrong(f"page {name} of {kind} on rank {self.rank.rank} has other bytes")

    def mine(self, pool):
        return [sg.page_bytes(pool, p) for p in range(self.first, self.first + 2 * BATCH)]

    def untouched(self, pool, before, pages):
        for p, held in enumerate(before, self.first):
            if p not in pages and sg.page_bytes(pool, p) != held:
                raise Wrong(f"page {p} was touched, and the call was for {pages}")


class Gate:
    """Steps of the workers side by side; between two of them the world may be changed."""

    def __init__(self):
        self.stop, self.lacking = threading.Event(), True
        self._condition = threading.Condition()
        self._inside, self._closed = 0, False

    def step(self):
        return self

    def __enter__(self):
        with self._condition:
            self._condition.wait_for(lambda: not self._closed)
            self._inside += 1

    def __exit__(self, *_):
        with self._condition:
            self._inside -= 1
            self._condition.notify_all()

    def between(self, change):
        with self._condition:
            self._closed = True
            self._condition.wait_for(lambda: self._inside == 0)
        try:
            change()
        finally:
            with self._condition:
                self._closed = False
                self._condition.notify_all()


def run(rng, ranks, steps, changes, every=0.15, until=lambda workers: True):
    """Runs `steps` steps a worker, and more until `until` says that what the test is about has
    happened. changes: what happens meanwhile, at any time; a function that has `apart` happens
    between steps."""
    prompts = [[hashlib.sha256(f"{p} {i}".encode()).hexdigest() for i in range(24)]
               for p in range(6)]
    gate = Gate()
    workers = [Worker(rank, number, number == 2, prompts, random.Random(rng.random()), gate, steps)
               for rank in ranks for number in range(3)]
    for worker in workers:
        worker.start()
    due, end = [], time.monotonic() + PATIENCE
    while any(w.is_alive() for w in workers):
        time.sleep(rng.random() * every)
        due = due or rng.sample(changes, len(changes))
        change = due.pop()
        gate.between(change) if getattr(change, "apart", False) else change()
        gate.lacking = time.monotonic() < end and not until(workers)
    for worker in workers:
        if worker.failure:
            raise worker.failure
    return workers


def apart(change):
    change.apart = True
    return change
