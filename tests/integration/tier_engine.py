"""vLLM's own tiering manager with CairnTier below it, driven as its scheduler drives it, by the
Python of one vLLM. Every row that would be loaded is compared with what was computed under its key.

Reads lines of JSON, [plan, options], and answers each with a line: {"answer": ...}, {"wrong": ...},
or before that {"do": ...} for the test, which says "done"."""

import hashlib
import json
import os
import random
import sys
import time
import traceback
import uuid

import numpy as np
from freeze import freeze, go_on, kill
from patience import STALL, blocked
from vllm.v1.kv_offload import config as configs
from vllm.v1.kv_offload.base import LookupResult, ReqContext, ScheduleEndContext, make_offload_key
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec

ROW = 24 << 10
TOKENS = 16


def offloading(tiers, rows, row=ROW):
    group = {"tokens_per_block": TOKENS, "layer_names": ("layers.0", "layers.1")}
    if "group_id" in configs.OffloadingGroupConfig.__dataclass_fields__:
        group["group_id"] = 0
    return configs.OffloadingConfig(
        groups=(configs.OffloadingGroupConfig(**group),), worker_kv_bytes_per_block=row,
        enable_kv_cache_events=True,
        extra_config={"cpu_bytes_to_use": row * rows, "secondary_tiers": tiers},
        engine_id=uuid.uuid4().hex, model=configs.OffloadingModelConfig("model", "bfloat16"),
        cache=configs.OffloadingCacheConfig(TOKENS, 1),
        parallel=configs.OffloadingParallelConfig(0, 1, 1, 1, 1, 1, 0, 1, None, False))


def tier(uri, **more):
    return {"type": "CairnTier", "module_path": "cairn.vllm_tier", "uri": uri,
            "identity": {"weights": "w1"}, "enable_kv_events": True, **more}


def content(key):
    return np.frombuffer(random.Random(key).randbytes(64) * (ROW // 64), np.int8)


def prompt(name, chunks):
    """Keys of a prompt; those of one name begin alike."""
    keys, last = [], b""
    for i in range(chunks):
        last = hashlib.sha256(last + f"{name} {i}".encode()).digest()
        keys.append(make_offload_key(last, 0))
    return keys


def rows_of(spec):
    return spec.chunk_ids if hasattr(spec, "chunk_ids") else spec.block_ids


class Request:
    def __init__(self, keys, params):
        self.context = ReqContext(req_id=uuid.uuid4().hex, kv_transfer_params=params)
        self.keys, self.begun = keys, time.monotonic()
        self.waited, self.hits, self.new = 0.0, 0, True
        self.loading, self.storing = [], []


class Engine:
    """As much of vLLM's offloading scheduler as calls the manager, and a GPU that is an oracle."""

    def __init__(self, uri, rows=24, step=0.0005, **more):
        """With time for a lookup and a load on a busy machine, unless `more` says otherwise."""
        more = {"timeout": 20, "lookup_timeout": 20, **more}
        self.manager = TieringOffloadingSpec(offloading([tier(uri, **more)], rows)).get_manager()
        self.view = np.asarray(self.manager.primary_tier.get_kv_memoryview())
        self.tier = self.manager.secondary_tiers[0]
        self.waiting, self.running, self.slowest, self.slow_calls = [], [], (0.0, ""), 0
        self.step_seconds, self.steps, self.done, self.events = step, 0, [], 0
        self.stats, self.before_loads = {}, None

    def call(self, name, *args, of=None):
        begun = blocked()
        answer = getattr(of or self.manager, name)(*args)
        spent = blocked() - begun
        self.slowest = max(self.slowest, (spent, name))
        self.slow_calls += spent > 0.9
        return answer

    def add(self, keys, params=None):
        request = Request(keys, params)
        self.call("on_new_request", request.context)
        self.waiting.append(request)
        return request

    def known(self, request):
        """vLLM's lookup of a whole prefix: None = ask again at the next step."""
        later = False
        for count, key in enumerate(request.keys):
            match self.call("lookup", key, request.context):
                case LookupResult.MISS:
                    return None if later else count
                case LookupResult.RETRY | LookupResult.HIT_PENDING:
                    later = True
        return None if later else len(request.keys)

    def begin(self, request, hits):
        request.hits, request.waited = hits, time.monotonic() - request.begun
        held, fresh = request.keys[:hits], request.keys[hits:]
        self.call("touch", request.keys, request.context)
        if held:
            for key, row in zip(held, rows_of(self.call("prepare_load", held, request.context))):
                assert np.array_equal(self.view[row], content(key)), f"wrong bytes in row {row}"
            request.loading = held
        if fresh:
            out = self.call("prepare_store", fresh, request.context)
            if out is not None and out.keys_to_store:
                for key, row in zip(out.keys_to_store, rows_of(out.store_spec)):
                    self.view[row] = content(key)
                request.storing = list(out.keys_to_store)
        self.running.append(request)

    def advance(self, request, rng):
        """GPU transfers end some steps later; then the request does."""
        if request.loading and rng.random() < 0.5:
            self.call("complete_load", request.loading, request.context)
            request.loading = []
        if request.storing and rng.random() < 0.5:
            self.call("complete_store", request.storing, request.context)
            request.storing = []
        if request.loading or request.storing or rng.random() < 0.3:
            return True
        self.call("on_request_finished", request.context)
        self.done.append(request)
        return False

    def step(self, rng, abort=0.0):
        new = []
        for request in list(self.waiting):
            if rng.random() < abort:
                self.waiting.remove(request)
                self.call("on_request_finished", request.context)
                continue
            hits = self.known(request)
            if hits is not None:
                self.waiting.remove(request)
                new.append(request.context.req_id)
                self.begin(request, hits)
        self.running = [r for r in self.running if self.advance(r, rng)]
        if self.before_loads and self.manager._pending_load_submissions:
            self.before_loads()
            self.before_loads = None
        self.call("on_schedule_end", ScheduleEndContext(new, ()))
        self.events += sum(e.medium.name == "STORAGE" for e in self.call("take_events"))
        stats = self.call("get_stats")
        for name, value in (stats.reduce() if stats else {}).items():
            if "cairn_tier" in name:
                self.stats[name] = self.stats.get(name, 0) + value
        self.steps += 1
        time.sleep(self.step_seconds)

    def run(self, rng, seconds=STALL, **more):
        """Until nothing waits, runs or is on its way."""
        end = time.monotonic() + seconds
        while self.waiting or self.running or self.manager.has_pending_work():
            assert time.monotonic() < end, (
                f"{len(self.waiting)} requests wait, {len(self.running)} run, "
                f"{len(self.tier._transfers or ())} calls after {seconds} s")
            self.step(rng, **more)

    def ask(self, keys, rng, params=None):
        request = self.add(keys, params)
        self.run(rng)
        return request

    def forget(self):
        """The primary tier's rows are gone, as if others had needed the room."""
        for _ in range(2):
            filler = ReqContext(req_id=uuid.uuid4().hex)
            self.manager.primary_tier.on_new_request(filler)
            count = len(self.view)
            keys = [make_offload_key(os.urandom(32), 0) for _ in range(count)]
            assert self.manager.primary_tier.prepare_store(keys, filler) is not None
            self.manager.primary_tier.complete_store(keys, filler, False)

    def close(self):
        self.view = None  # vLLM unmaps it
        self.manager.shutdown()

    def report(self, **more):
        counts = {k.removeprefix("vllm:cairn_tier_"): v for k, v in self.stats.items()}
        return {"steps": self.steps, "slowest_ms": round(self.slowest[0] * 1e3, 2),
                "slowest": self.slowest[1], "slow_calls": self.slow_calls,
                "events": self.events, **counts, **more}


# --- plans ---


def plan_storm(uri, seed, steps, **more):
    """Requests over overlapping prompts in any order, a primary tier that is always too small."""
    rng = random.Random(seed)
    engine = Engine(uri, rows=rng.choice([10, 24, 60]), step=0.0002, **more)
    names = rng.choice([12, 80])
    while engine.steps < steps:
        if len(engine.waiting) + len(engine.running) < 6 and rng.random() < 0.5:
            engine.add(prompt(rng.randrange(names), rng.randrange(1, 9)))
        engine.step(rng, abort=0.02)
        if rng.random() < 0.002:
            engine.call("reset_cache")
            for request in engine.running:
                request.loading, request.storing = [], []
    engine.run(rng)
    hits = sum(r.hits for r in engine.done)
    assert not len(engine.tier._lookups), "lookups of finished requests are kept"
    longest = max(r.waited for r in engine.done)
    engine.close()
    return engine.report(requests=len(engine.done), hits=hits, longest_s=round(longest, 3))


def plan_fill(uri, names, chunks, then="end", params=None, **more):
    rng = random.Random(0)
    engine = Engine(uri, **more)
    hits = [engine.ask(prompt(name, chunks), rng, params).hits for name in names]
    if then == "wait":
        told("kill")
    engine.close()
    return engine.report(hits=hits)


def plan_epoch(uri):
    rng = random.Random(0)
    engine = Engine(uri)
    keys = prompt("a", 6)
    hits = [engine.ask(keys, rng).hits]
    engine.forget()
    hits.append(engine.ask(keys, rng).hits)
    engine.call("reset_cache")
    hits.append(engine.ask(keys, rng).hits)
    engine.forget()
    hits.append(engine.ask(keys, rng).hits)
    engine.close()
    return engine.report(hits=hits)


def plan_refused(tier, row=ROW):
    try:
        TieringOffloadingSpec(offloading([tier], 8, row)).get_manager().shutdown()
    except ValueError as why:
        return {"said": str(why)}
    return {"said": None}


def plan_configured(uri, model, **options):
    """The tier as vLLM's connector makes it, with the configuration of an engine: its identity."""
    import torch
    from vllm.config import KVTransferConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
    from vllm.distributed.kv_transfer.kv_connector.v1 import offloading_connector
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.core.kv_cache_utils import get_kv_cache_configs
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    below = {"type": "CairnTier", "module_path": "cairn.vllm_tier", "uri": uri}
    config = EngineArgs(
        model=model, enforce_eager=True, max_model_len=1024, **options,
        kv_transfer_config=KVTransferConfig(
            kv_connector="OffloadingConnector", kv_role="kv_both", engine_id=uuid.uuid4().hex,
            kv_connector_extra_config={"spec_name": "TieringOffloadingSpec",
                                       "cpu_bytes_to_use": 64 << 20, "secondary_tiers": [below]}),
    ).create_engine_config()
    if hasattr(config.cache_config, "get_resolved_kv_cache_layout"):
        config.cache_config.kv_cache_layout = "LBHNC"  # the engine core says so before
    layers = {f"model.layers.{i}.self_attn.attn": FullAttentionSpec(
        block_size=128, num_kv_heads=3, head_size=64, dtype=torch.bfloat16) for i in range(30)}
    cache, = get_kv_cache_configs(config, [layers], [1 << 30])
    connector = offloading_connector.OffloadingConnector(config, KVConnectorRole.SCHEDULER, cache)
    tier, = connector.connector_scheduler.manager.secondary_tiers
    fields = tier._names.identity.fields
    connector.shutdown()
    return fields


def plan_later(uri):
    """The node comes after the engine."""
    rng = random.Random(0)
    engine = Engine(uri, step=0.01)
    before = engine.ask(prompt("a", 4), rng)
    told("start")
    end, hits = time.monotonic() + STALL, 0
    while hits < 4 and time.monotonic() < end:
        engine.forget()
        hits = engine.ask(prompt("a", 4), rng).hits
    engine.close()
    return engine.report(before=before.hits, hits=hits)


def plan_faults(uri, pid, kind):
    """A node that stops answering, and comes back: who waits for it, and how long?"""
    rng = random.Random(0)
    engine = Engine(uri, step=0.001, timeout=1, lookup_timeout=0.2)
    names = [f"p{i}" for i in range(8)]
    for name in names:
        assert until_held(engine, rng, [name], STALL) < STALL
    engine.forget()
    engine.slowest, engine.slow_calls = (0.0, ""), 0
    if kind == "frozen in a load":
        engine.before_loads = lambda: freeze(pid)
    elif kind == "frozen":
        freeze(pid)
    elif kind == "killed":
        kill(pid)
    else:
        told("slow")
    gone = [engine.ask(prompt(name, 5), rng) for name in names]
    gone += [engine.ask(prompt(f"new {name}", 5), rng) for name in names]
    waits = [round(r.waited, 3) for r in gone]
    gone_hits = [r.hits for r in gone]
    if kind.startswith("frozen"):
        go_on(pid)
    else:
        told("start")
    return back(engine, rng, names, waits, gone_hits)


def back(engine, rng, names, waits, gone_hits):
    """Hits again within so many seconds of its return; a killed node has to be filled first."""
    seconds = until_held(engine, rng, names, STALL)
    engine.close()
    return engine.report(waits=waits, gone_hits=gone_hits, back_s=round(seconds, 2))


def until_held(engine, rng, names, seconds):
    """Until one of them is loaded whole; how long that took."""
    begun, hits = time.monotonic(), 0
    while hits < 5 and time.monotonic() - begun < seconds:
        engine.forget()
        hits = engine.ask(prompt(rng.choice(names), 5), rng).hits
    return time.monotonic() - begun


def told(line):
    say({"do": line})
    assert sys.stdin.readline().strip() == "done"


def say(what):
    print(json.dumps(what), flush=True)


def main():
    say("ready")
    for line in sys.stdin:
        plan, options = json.loads(line)
        try:
            say({"answer": globals()[f"plan_{plan}"](**options)})
        except Exception:
            say({"wrong": traceback.format_exc()})


if __name__ == "__main__":
    main()
