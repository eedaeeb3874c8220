"""Random schedules through vLLM's own scheduler and the connector, against an oracle of page bytes.

Only the model is made up: a token's KV is a number that depends on every token before it, and the
next token is drawn from that number. In each step all KV that the step would attend to is compared,
byte for byte, with what those tokens must have; the tokens that come out are compared at the end.
Scheduling, block tables, prefix caching, preemption, the order of the connector's hooks and what
becomes of failed loads are the installed vLLM's.

Run as a program, in the venv whose vLLM is meant; one JSON object goes to standard output."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PYTHONHASHSEED", "0")

import numpy as np  # noqa: E402
import torch  # noqa: E402

HEADS, HEAD_SIZE = 1, 64
SLOT = HEADS * 2 * HEAD_SIZE * 2 // 8  # uint64 a token and layer
VOCABULARY = 1000
MASK = (1 << 64) - 1
MULTIPLIERS = np.random.default_rng(1).integers(1, 1 << 63, 1 << 16, np.uint64) | np.uint64(1)


def base_of(salt: str | None, weights: int) -> np.uint64:
    return np.uint64(hash_of(f"{weights} {salt or ''}"))


def chain(tokens: list[int], base: np.uint64) -> np.ndarray:
    """One number a token that depends on all before it."""
    values = (np.asarray(tokens, np.uint64) + np.uint64(1)) * MULTIPLIERS[:len(tokens)]
    with np.errstate(over="ignore"):
        return np.cumsum(values, dtype=np.uint64) ^ base


def hash_of(text: str) -> int:
    h = 0xcbf29ce484222325
    for byte in text.encode():
        h = (h ^ byte) * 0x100000001b3 & MASK
    return h


def slots(numbers: np.ndarray, layer: int) -> np.ndarray:
    """(tokens, SLOT): what these tokens have in a layer."""
    with np.errstate(over="ignore"):
        mixed = (numbers + np.uint64(layer)) * np.uint64(0x9e3779b97f4a7c15)
        return mixed[:, None] + np.arange(SLOT, dtype=np.uint64)[None, :] * np.uint64(0xff51afd7)


def next_token(number: np.uint64) -> int:
    return int(number >> np.uint64(20)) % VOCABULARY


@dataclass
class Running:
    """What a worker knows of a request: the tokens, and its block tables."""

    tokens: list[int]
    prompt: int
    salt: str | None
    blocks: list[list[int]] = field(default_factory=list)
    numbers: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    weights: int = 0

    def number(self, count: int, weights: int) -> np.ndarray:
        if len(self.numbers) < count or self.weights != weights:
            self.numbers = chain(self.tokens, base_of(self.salt, weights))
            self.weights = weights
        return self.numbers[:count]


class Parameters(torch.nn.Module):
    """All that the made-up model has, written over as trainers do it."""

    def __init__(self) -> None:
        super().__init__()
        self.version = torch.nn.Parameter(torch.zeros(1), requires_grad=False)

    def load_weights(self, weights: Any) -> None:
        for _, value in weights:
            self.version.data.copy_(value)


class Wrong(Exception):
    pass


class Model:
    """The model runner: KV in the tensors that vLLM's own configuration lays out."""

    def __init__(self, config: Any, cache: Any) -> None:
        self.config, self.cache = config, cache
        self.groups = cache.kv_cache_groups
        self.requests: dict[str, Running] = {}
        self.wrong: list[str] = []
        self.checked = 0
        self.weights = 0
        self.layers: dict[str, torch.Tensor] = {}
        block = self.groups[0].kv_cache_spec.block_size
        shape = (cache.num_blocks, HEADS, block, 2 * HEAD_SIZE)
        page = 2 * HEADS * block * 2 * HEAD_SIZE
        tensors = cache.kv_cache_tensors
        if hasattr(tensors[0], "shared_by"):
            for tensor in tensors:
                backing = torch.full((page * cache.num_blocks,), 0x5a, dtype=torch.uint8)
                for name in tensor.shared_by:
                    self.layers[name] = backing.view(torch.bfloat16).view(shape)
        else:
            backing = torch.full((tensors[0].size,), 0x5a, dtype=torch.uint8)
            for tensor in tensors:
                for i, name in enumerate(tensor.layers):
                    at = tensor.offset + i * tensor.layer_stride
                    self.layers[name] = torch.as_strided(
                        backing.view(torch.bfloat16), shape,
                        (tensor.block_stride // 2, block * 2 * HEAD_SIZE, 2 * HEAD_SIZE, 1),
                        at // 2)
        self.ids = {name: i for i, name in enumerate(sorted(self.layers))}
        self.views = {name: t.view(torch.int16).numpy() for name, t in self.layers.items()}

    def _table(self, r: Running, group: int, first: int, last: int) -> tuple[Any, Any]:
        """Blocks and places in them of tokens [first, last)."""
        size = self.groups[group].kv_cache_spec.block_size
        at = np.arange(first, last)
        table = np.asarray(r.blocks[group], np.int64)
        return table[at // size], at % size

    def _window(self, group: int, computed: int) -> int:
        """The first token that a step after `computed` tokens attends to."""
        window = getattr(self.groups[group].kv_cache_spec, "sliding_window", None)
        return max(0, computed - window + 1) if window else 0

    def update(self, output: Any) -> None:
        for name in output.finished_req_ids:
            self.requests.pop(name, None)
        for new in output.scheduled_new_reqs:
            old = self.requests.get(new.req_id)
            tokens = list(getattr(new, "prefill_token_ids", None) or new.prompt_token_ids)
            if old is not None and len(old.tokens) > len(tokens):
                tokens = old.tokens
            self.requests[new.req_id] = Running(tokens, len(new.prompt_token_ids),
                                                self.salts[new.req_id],
                                                [list(b) for b in new.block_ids])
        cached = output.scheduled_cached_reqs
        for i, name in enumerate(cached.req_ids):
            r, more = self.requests[name], cached.new_block_ids[i]
            if name in cached.resumed_req_ids:
                r.blocks = [list(b) for b in more]
            elif more is not None:
                for have, new_blocks in zip(r.blocks, more):
                    have.extend(new_blocks)

    salts: dict[str, str | None] = {}

    def forward(self, output: Any) -> tuple[dict[str, list[int]], list[tuple[str, int, str]]]:
        """Sampled tokens by request, and what was wrong: (request, first wrong token, text)."""
        computed = {n.req_id: n.num_computed_tokens for n in output.scheduled_new_reqs}
        cached = output.scheduled_cached_reqs
        computed.update(zip(cached.req_ids, cached.num_computed_tokens))
        wrong, sampled = [], {}
        # As an attention layer does: first all are written, then all is read. A request may share
        # blocks with one that computes them in the same step.
        for name, count in output.num_scheduled_tokens.items():
            r, done = self.requests[name], computed[name]
            end = min(done + count, len(r.tokens))
            numbers = r.number(len(r.tokens), self.weights)
            for group, spec in enumerate(self.groups):
                blocks, places = self._table(r, group, done, end)
                for layer in spec.layer_names:
                    page = slots(numbers[done:end], self.ids[layer]).view(np.int16)
                    self.views[layer][blocks, 0, places] = page
        for name, count in output.num_scheduled_tokens.items():
            r, done = self.requests[name], computed[name]
            numbers = r.number(len(r.tokens), self.weights)
            for group, spec in enumerate(self.groups):
                first = self._window(group, done)
                for layer in spec.layer_names:
                    bad = self._compare(r, group, layer, first, done, numbers)
                    if bad is not None:
                        wrong.append((name, bad, f"{name} group {group} {layer} token {bad} of "
                                                 f"{done} computed"))
                        break
            if done + count >= len(r.tokens):
                token = next_token(numbers[-1])
                r.tokens.append(token)
                sampled[name] = [token]
        return sampled, wrong

    def _compare(self, r: Running, group: int, layer: str, first: int, last: int,
                 numbers: np.ndarray) -> int | None:
        if first >= last:
            return None
        blocks, places = self._table(r, group, first, last)
        have = self.views[layer][blocks, 0, places]
        want = slots(numbers[first:last], self.ids[layer]).view(np.int16)
        self.checked += last - first
        differs = np.flatnonzero((have != want).any(axis=1))
        return int(first + differs[0]) if len(differs) else None


class Harness:
    def __init__(self, o: argparse.Namespace) -> None:
        self.o = o
        self.rng = random.Random(o.seed)
        self.config = self._config()
        self.cache = self._cache()
        self.block = self.cache.kv_cache_groups[0].kv_cache_spec.block_size
        self._connect()
        self.model, self.parameters = Model(self.config, self.cache), Parameters()
        self.updates, self.mixed = 0, False
        self.straddling: set[str] = set()
        self.worker.register_kv_caches(self.model.layers)
        self._handshake()
        self.count = self.aborted = self.finished = self.promised = self.steps = 0
        self.preempted = self.failed_steps = self.resets = self.flips = 0
        self.given: dict[str, tuple[list[int], int, str | None]] = {}
        self.pool = [[self.rng.randrange(VOCABULARY) for _ in range(o.longest)] for _ in range(4)]
        self.results: dict[str, list[int]] = {}
        self.counted: dict[str, float] = {}

    # --- vLLM's own parts ---

    def _config(self) -> Any:
        from vllm.config import KVTransferConfig
        from vllm.engine.arg_utils import EngineArgs
        transfer = KVTransferConfig(
            kv_connector="CairnConnector", kv_connector_module_path="cairn.vllm",
            kv_role="kv_both", kv_load_failure_policy="recompute",
            kv_connector_extra_config={"uri": self.o.uri, **json.loads(self.o.extra)})
        args = EngineArgs(model=self.o.model, enforce_eager=True, block_size=self.o.block,
                          max_model_len=2048, max_num_batched_tokens=self.o.batch,
                          max_num_seqs=6, kv_transfer_config=transfer, seed=0,
                          enable_chunked_prefill=True, num_gpu_blocks_override=self.o.blocks)
        return args.create_engine_config()

    def _cache(self) -> Any:
        from vllm.v1.core.kv_cache_utils import get_kv_cache_configs
        from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec
        common = {"block_size": self.o.block, "num_kv_heads": HEADS, "head_size": HEAD_SIZE,
                  "dtype": torch.bfloat16}
        specs: dict[str, Any] = {}
        for i in range(2 * (1 + self.o.windows)):
            kind = i % (1 + self.o.windows)
            specs[f"model.layers.{i}.self_attn.attn"] = (
                SlidingWindowSpec(sliding_window=self.o.window, **common) if kind
                else FullAttentionSpec(**common))
        if hasattr(self.config.cache_config, "kv_cache_layout"):
            self.config.cache_config.kv_cache_layout = "LBHNC"  # the CPU backend's own
        cache = get_kv_cache_configs(self.config, [specs], [1 << 30])[0]
        self.config.cache_config.num_gpu_blocks = cache.num_blocks
        return cache

    def _connect(self) -> None:
        from vllm.distributed.kv_transfer import get_kv_transfer_group
        from vllm.distributed.kv_transfer import kv_transfer_state
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.structured_output import StructuredOutputManager
        from vllm.utils.hashing import sha256_cbor
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        kv_transfer_state._sync_engine_id_across_tp = lambda *_: None  # there is one rank
        init_none_hash(sha256_cbor)
        self.hasher = get_request_block_hasher(self.o.block, sha256_cbor)
        self.config.scheduler_config.async_scheduling = self.o.asynchronous
        kind = AsyncScheduler if self.o.asynchronous else Scheduler
        self.scheduler = kind(vllm_config=self.config, kv_cache_config=self.cache,
                              structured_output_manager=StructuredOutputManager(self.config),
                              block_size=self.o.block, hash_block_size=self.o.block,
                              log_stats=True)
        kv_transfer_state.ensure_kv_transfer_initialized(self.config, self.cache)
        self.worker = get_kv_transfer_group()

    def _handshake(self) -> None:
        """As EngineCore does once its workers run."""
        described = self.worker.get_handshake_metadata()
        connector = self.scheduler.get_kv_connector()
        if described is not None:
            if hasattr(connector, "set_xfer_handshake_metadata_pp_aware"):
                connector.set_xfer_handshake_metadata_pp_aware({(0, 0): described}
                                                               if self._pairs(connector)
                                                               else {0: {0: described}})
            else:
                connector.set_xfer_handshake_metadata({0: described})

    @staticmethod
    def _pairs(connector: Any) -> bool:
        from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1
        import inspect
        text = inspect.getsource(KVConnectorBase_V1.set_xfer_handshake_metadata_pp_aware)
        return "tuple[int, int]" in text

    # --- requests ---

    def add(self) -> None:
        from vllm import SamplingParams
        from vllm.v1.request import Request
        rng = self.rng
        shared = rng.randrange(self.o.longest)
        tokens = rng.choice(self.pool)[:shared]
        tokens = tokens + [rng.randrange(VOCABULARY) for _ in range(rng.randrange(1, 200))]
        if rng.random() < 0.3:
            tokens = tokens[:max(1, len(tokens) // self.block * self.block)]
        salt = rng.choice([None, None, None, "a", "ü"])
        self.count += 1
        name = f"r{self.count}"
        length = rng.choice([1, 2, 5, 20, self.o.answer])
        params = SamplingParams(max_tokens=length, temperature=0.0, ignore_eos=True)
        request = Request(request_id=name, prompt_token_ids=tokens, sampling_params=params,
                          pooling_params=None, cache_salt=salt, block_hasher=self.hasher)
        self.given[name] = (tokens, length, salt)
        self.model.salts[name] = salt
        self.results[name] = []
        if self.mixed:
            self.straddling.add(name)
        self.scheduler.add_request(request)

    def abort(self) -> None:
        from vllm.v1.request import RequestStatus
        live = [n for n in self.given if n in self.scheduler.requests]
        if live:
            name = self.rng.choice(live)
            self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
            self.given.pop(name)
            self.aborted += 1

    def expected(self, name: str) -> list[int]:
        tokens, length, salt = self.given[name]
        tokens = list(tokens)
        base = base_of(salt, self.model.weights)
        with np.errstate(over="ignore"):
            total = chain(tokens, np.uint64(0))[-1]
            out = []
            for _ in range(length):
                token = next_token(total ^ base)
                out.append(token)
                total += (np.uint64(token) + np.uint64(1)) * MULTIPLIERS[len(tokens)]
                tokens.append(token)
        return out

    # --- steps ---

    def execute(self, output: Any) -> Any:
        """A step of the worker, its hooks called by vLLM's own runner code."""
        from vllm.forward_context import set_forward_context
        from vllm.v1.outputs import ModelRunnerOutput
        from vllm.v1.worker.kv_connector_model_runner_mixin import KVConnectorModelRunnerMixin
        model = self.model
        self.worker.handle_preemptions(output.kv_connector_metadata)
        model.update(output)
        if not output.total_num_scheduled_tokens:
            ran = KVConnectorModelRunnerMixin.kv_connector_no_forward(output, self.config)
            self._count(ran.kv_connector_output and ran.kv_connector_output.kv_connector_stats)
            return ran
        with set_forward_context(None, self.config), \
                KVConnectorModelRunnerMixin.maybe_get_kv_connector_output(output) as told:
            sampled, wrong = model.forward(output)
        self._judge(wrong, told)
        self._count(told.kv_connector_stats)
        names = list(output.num_scheduled_tokens)
        return ModelRunnerOutput(
            req_ids=names, req_id_to_index={n: i for i, n in enumerate(names)},
            sampled_token_ids=[sampled.get(n, []) for n in names], logprobs=None,
            prompt_logprobs_dict={}, pooler_output=[], kv_connector_output=told)

    def _count(self, stats: Any) -> None:
        for name, amount in (stats.data if stats else {}).items():
            self.counted[name] = self.counted.get(name, 0) + amount

    def _judge(self, wrong: list[tuple[str, int, str]], told: Any) -> None:
        """Wrong bytes are forgiven where the same step reports their blocks."""
        bad = told.invalid_block_ids or set()
        if bad:
            self.failed_steps += 1
        forgiven = set()
        for name, token, text in wrong:
            r = self.model.requests[name]
            at = [i for i, b in enumerate(r.blocks[0]) if b in bad]
            if self.mixed and not at:
                continue
            if not at or at[0] * self.block > token:
                raise Wrong(f"step {self.steps}: {text}")
            forgiven.add(name)
        for name in forgiven:
            # What was sampled from those is thrown away by the scheduler.
            r = self.model.requests[name]
            del r.tokens[max(r.prompt, self._known(name)):]
            r.numbers = np.empty(0, np.uint64)

    def _known(self, name: str) -> int:
        return self.scheduler.requests[name].num_tokens

    def step(self) -> None:
        self.steps += 1
        output = self.scheduler.schedule()
        self.preempted += len(getattr(output, "preempted_req_ids", None) or ())
        self.promised += sum(bool(n.num_computed_tokens) for n in output.scheduled_new_reqs)
        ran = self.execute(output)
        self.waiting.append((output, ran))
        while len(self.waiting) > (1 if self.o.asynchronous and self.rng.random() < 0.8 else 0):
            self.take(*self.waiting.pop(0))

    waiting: list[Any] = []

    def take(self, output: Any, ran: Any) -> None:
        for outputs in self.scheduler.update_from_output(output, ran).values():
            for said in outputs.outputs:
                if said.request_id not in self.given:
                    continue
                self.results[said.request_id].extend(said.new_token_ids)
                if said.finish_reason is not None:
                    self._finish(said.request_id)

    def _finish(self, name: str) -> None:
        want = self.expected(name)
        if self.results[name] != want and name not in self.straddling:
            raise Wrong(f"step {self.steps}: {name} said {self.results[name]} instead of {want}")
        del self.given[name]
        self.finished += 1

    def flip(self) -> None:
        """Turns over bytes of the log, behind the store's back."""
        file = self.o.log
        if not file.exists():
            return
        with file.open("r+b") as f:
            size = file.stat().st_size
            for _ in range(64):
                at = self.rng.randrange(2 << 20, size)
                f.seek(at)
                byte = f.read(1)
                f.seek(at)
                f.write(bytes([byte[0] ^ 1 << self.rng.randrange(8)]))
        self.flips += 1

    def reset(self) -> None:
        done = self.scheduler.reset_prefix_cache(reset_connector=self.rng.random() < 0.1)
        self.resets += done
        self.mixed &= not done

    # --- weights ---

    def get_model(self) -> torch.nn.Module:
        """What a model runner has."""
        return self.parameters

    def update(self) -> None:
        """Other weights. What the engine holds then is mixed, and nobody's fault but its own, until
        it has emptied its cache."""
        self.updates += 1
        self.model.weights += 1
        value = torch.tensor([float(self.model.weights)])
        if self.rng.random() < 0.5:
            self.parameters.load_weights([("version", value)])
        else:
            with torch.no_grad():
                self.parameters.version.copy_(value)
        pool = self.scheduler.kv_cache_manager.block_pool
        if (pool.get_num_free_blocks() < pool.num_gpu_blocks - 1
                or len(pool.cached_block_hash_to_block)):
            self.mixed = True
            self.straddling.update(self.given)

    def train(self) -> None:
        """An update while nothing runs, in every order with a reset and new requests."""
        order = [self.update, self.reset, self.add, self.add, self.add]
        self.rng.shuffle(order)
        for act in order:
            act()

    def missing(self) -> dict[str, float]:
        """Of the events that --until names, those that have not been met often enough."""
        said = self.report()
        said.update({f"miss_{cause}": n for cause, n in said["store_misses"].items()})
        return {name: said.get(name, 0) for name, count in self.o.until
                if said.get(name, 0) < count}

    def run(self) -> None:
        end = time.monotonic() + self.o.seconds
        pause = False
        while time.monotonic() < end:
            if self.steps >= self.o.steps and self.steps % 20 == 0 and not self.missing():
                break
            if not pause and len(self.given) < 12 and self.rng.random() < 0.25:
                self.add()
            if self.rng.random() < 0.02:
                self.abort()
            # A reset is refused while requests run: now and then all of them end first.
            pause |= self.rng.random() < 0.01
            if pause and not self.given:
                (self.train if self.o.updates and self.rng.random() < 0.5 else self.reset)()
                pause = False
            if self.o.updates and self.rng.random() < 0.003:
                self.update()
            if self.o.log and self.rng.random() < 0.1:
                self.flip()
            self.step()
        self.drain()

    def drain(self) -> None:
        """Everything ends, and no block is held."""
        end = time.monotonic() + 60
        pool = self.scheduler.kv_cache_manager.block_pool
        while self.given or self.waiting or self.scheduler.has_requests():
            if time.monotonic() > end:
                raise Wrong(f"not over within 60 s: {sorted(self.given)}, requests "
                            f"{ {n: r.status for n, r in self.scheduler.requests.items()} }")
            self.step()
        while pool.get_num_free_blocks() != pool.num_gpu_blocks - 1:
            if time.monotonic() > end:
                raise Wrong(f"{pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()} blocks are "
                            "held when nothing runs")
            self.step()

    def report(self) -> dict[str, Any]:
        return {"seed": self.o.seed, "steps": self.steps, "requests": self.count,
                "finished": self.finished, "aborted": self.aborted, "preempted": self.preempted,
                "failed_loads": self.failed_steps, "resets": self.resets, "flips": self.flips,
                "updates": self.updates, "mixed": self.mixed,
                "tokens_checked": self.model.checked, "hits": self.promised,
                "store_misses": self.misses(), **self.counted}

    def misses(self) -> dict[str, int]:
        """What the store itself counted, by cause."""
        from cairn import _vllm_store
        store = _vllm_store.acquire(self.o.uri)
        try:
            return {k: v for k, v in store.stats().get("misses", {}).items() if v}
        finally:
            _vllm_store.release(self.o.uri)


def event(text: str) -> tuple[str, int]:
    name, _, count = text.partition("=")
    return name, int(count)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--uri", required=True)
    p.add_argument("--model", required=True)
    p.add_argument("--seed", type=int, required=True)
    p.add_argument("--steps", type=int, default=2000, help="at least so many")
    p.add_argument("--until", type=event, action="append", default=[], metavar="NAME=COUNT",
                   help="more steps until this has been counted so often; may be repeated")
    p.add_argument("--seconds", type=float, default=60, help="at most, whatever is missing then")
    p.add_argument("--block", type=int, default=32)
    p.add_argument("--blocks", type=int, default=120, help="of the engine: few make it preempt")
    p.add_argument("--batch", type=int, default=512)
    p.add_argument("--longest", type=int, default=1500)
    p.add_argument("--answer", type=int, default=150, help="tokens; long ones make it preempt")
    p.add_argument("--windows", type=int, default=0, help="sliding-window groups")
    p.add_argument("--window", type=int, default=96)
    p.add_argument("--asynchronous", action="store_true", help="a step is planned ahead")
    p.add_argument("--updates", action="store_true", help="of the weights, in place")
    p.add_argument("--log", type=Path, help="flip bytes of this file")
    p.add_argument("--extra", default="{}", help="more of kv_connector_extra_config, as JSON")
    o = p.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    harness = None
    try:
        harness = Harness(o)
        harness.run()
        found = {**harness.report(), "missing": harness.missing()}
        harness.scheduler.shutdown()
        harness.worker.shutdown()
    except Exception as why:
        traceback.print_exc()
        found = {"wrong": f"{type(why).__name__}: {why}", "seed": o.seed,
                 "steps": harness.steps if harness else 0}
    answers.write(json.dumps(found) + "\n")
    answers.flush()
    return 1 if "wrong" in found else 0


if __name__ == "__main__":
    sys.exit(main())
