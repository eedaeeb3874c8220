"""The scheduler's half: what a request is promised, what is saved of it, and which blocks stay
referenced meanwhile. It moves no bytes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.logger import init_logger

from . import _vllm_store as stores
from ._vllm_adapters import reading
from ._vllm_apart import LinkedStore
from ._vllm_compat import FAILED_REQUESTS_CAN_BE_TOLD, block_table, windowed
from ._vllm_controls import Controls, controls_of
from ._vllm_events import Events
from ._vllm_keys import Chain, Names, images_named, named_by_tokens
from ._vllm_lookup import Lookups, Question
from ._vllm_metrics import Stats
from ._vllm_options import Options, refusal
from ._vllm_saves import Saves
from ._vllm_step import Described, Report, Step, Transfer
from .errors import Error

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

logger = init_logger("vllm.cairn")

WAIT_SECONDS = 0.0003  # for one lookup
NAMED_AT_ONCE = 8192  # tokens, of all parts together
STEP_WAIT_SECONDS = 0.001  # for all lookups of a step
HEAR_SECONDS = 2.0  # for the workers' first words
TAIL_SECONDS = 0.2  # that the parts of a prefill elsewhere may still be on their way
SMALL_SHARE = 0.05  # of a step: a load that takes no more than this need not be asynchronous
SMALL_SECONDS = 0.002


@dataclass(eq=False)
class Tracked:
    """What is known of a request."""

    request: Request
    chain: Chain
    controls: Controls
    question: Question | None = None
    asked: float = 0.0
    promise: Promise | None = None
    loading: bool = False
    failed: bool = False  # a second promise could fail the same way, for ever
    again: bool = False  # it was asked for once more, as there may be more room now
    saved: int = 0  # chunks from the start that need no save any more
    looked: float = 0.0  # when `saved` was heard
    local: int = 0  # tokens that the engine held itself, and what it was promised
    tail_save: int = 0  # of the page that its next token is written to
    blocks: list[list[int]] = field(default_factory=list)


@dataclass
class Promise:
    """Tokens start to end, and the keys of the chunks that they are in, from chunk first on."""

    start: int
    end: int
    first: int
    keys: np.ndarray
    wait: bool


class SchedulerSide:
    def __init__(self, config: VllmConfig, cache: KVCacheConfig, options: Options) -> None:
        self._config, self._options = config, options
        self._groups = len(cache.kv_cache_groups)
        self._windowed = self._groups == 1 and windowed(cache.kv_cache_groups[0].kv_cache_spec)
        self._images = images_named(config)
        self._world = config.parallel_config.world_size
        self.store: Any = None
        self.names: Names | None = None
        self._lookups: Lookups | None = None
        self._ranks: list[Described] = []
        self._heard_by: float | None = None  # when nobody waits for the workers' words any more
        self.near = not options.uri.startswith("tcp:")
        self._saves = Saves(self._world, self._options.inflight)
        self._events = Events(config)
        self._tracked: dict[str, Tracked] = {}
        self._last_id = 0
        self._begin: list[Transfer] = []  # loads of the next step
        self._loads: dict[int, tuple[Tracked, Question | None, int]] = {}  # and ranks to hear of
        self._waited = 0.0
        self._step_seconds = 0.0
        self._last_step = 0.0
        self._stats = Stats()
        self._epoch = ""
        # Steps are planned before the one before is known to have failed.
        self._ahead = (bool(getattr(config.scheduler_config, "async_scheduling", False))
                       or getattr(config.parallel_config, "pipeline_parallel_size", 1) > 1)
        self._clean = True  # what the engine holds was computed by the weights of this epoch
        self._steps = 0
        self._fresh = True  # it holds nothing that was computed before the next step
        self._fresh_step = 0  # the last one of which that was so
        self._since = 0  # the last one before which weights were written over

    # --- what the workers say of themselves ---

    def set_described(self, metadata: Iterable[Any]) -> None:
        ranks = sorted((m for m in metadata if isinstance(m, Described)), key=lambda m: m.rank)
        if not ranks or self._heard_by == 0.0:
            return
        self._heard_by = 0.0
        why = self._unfit(ranks)
        if why is None:
            try:
                self._open(ranks)
                return
            except (Error, OSError) as error:
                why = str(error)
        stores.without(why)

    def _unfit(self, ranks: list[Described]) -> str | None:
        for rank in ranks:
            if rank.why_not:
                return rank.why_not
        if len(ranks) != self._world:
            return f"{len(ranks)} of its {self._world} workers have told what their KV cache is"
        if len({(r.chunk_tokens, tuple(r.block_tokens), len(r.fields)) for r in ranks}) != 1:
            return "its workers differ in their blocks"
        if self._windowed:
            return ("all of its layers see a window only: after a load that failed vLLM would go "
                    "on behind blocks that it no longer has")
        if self._groups > 1 and not FAILED_REQUESTS_CAN_BE_TOLD:
            return ("its model has several KV groups, and this version of vLLM cannot be told that "
                    "a load of such a model failed; vLLM 0.32 can")
        return refusal(self._config)

    def _open(self, ranks: list[Described]) -> None:
        link = ranks[0].link
        self.store = (LinkedStore(link) if link
                       else stores.acquire(self._options.uri, self._options.timeout))
        self._ranks = ranks
        self.names = Names(ranks, self._epoch, self._options.domain)
        self._lookups = Lookups(self.store, self._options.lookup_timeout, self.chunk_bytes())

    def chunk_bytes(self) -> int:
        """Of all ranks and groups."""
        return sum(page * (r.chunk_tokens // block) for r in self._ranks
                   for page, block in zip(r.page_bytes, r.block_tokens))

    def bind_pool(self, pool: BlockPool) -> None:
        self._saves.pool = pool
        self._events.hash_tokens = pool.hash_block_size

    def shutdown(self) -> None:
        self.names = None
        for tracked in self._tracked.values():
            self._let_go(tracked)
        self._tracked.clear()
        for tracked, question, _ in self._loads.values():
            self._drop(question)
        self._loads.clear()
        lookups, self._lookups = self._lookups, None
        if lookups is not None:
            lookups.close()
        store, self.store = self.store, None
        if isinstance(store, LinkedStore):
            store.close()
        elif store is not None:
            stores.release(self._options.uri)

    # --- what a request is promised ---

    def on_new_request(self, request: Request) -> None:
        self._look()
        tracked = self._track(request)
        if tracked is not None:
            self._ask(tracked, self._local_hit(request))

    def _track(self, request: Request) -> Tracked | None:
        """None where a request is computed as if there were no cache."""
        if self.names is None:
            return None
        tracked = self._tracked.get(request.request_id)
        if tracked is None:
            if self._left_out(request) or not named_by_tokens(request, self._images):
                return None
            tracked = Tracked(request, Chain(self.names, request), controls_of(request))
            self._tracked[request.request_id] = tracked
        return None if tracked.chain.names is not self.names else tracked

    def _left_out(self, request: Request) -> bool:
        return bool(controls_of(request).nothing
                    or getattr(request, "skip_reading_prefix_cache", False)
                    or request.num_tokens < self._options.min_tokens)

    def _local_hit(self, request: Request) -> int:
        """Tokens that the engine's own cache seems to hold: they need not be fetched. A guess."""
        pool = self._saves.pool
        if pool is None or self._groups > 1 or not self._config.cache_config.enable_prefix_caching:
            return 0
        held = 0
        for block_hash in request.block_hashes:
            if not pool.get_cached_block(block_hash, [0]):
                break
            held += 1
        return held * pool.hash_block_size

    def _ask(self, tracked: Tracked, computed: int) -> None:
        assert self.names is not None and self._lookups is not None
        size = self.names.chunk_tokens
        # The last token is always computed: its output is what was asked for.
        tokens, controls = tracked.request.num_tokens, tracked.controls
        readable = controls.readable(tokens - 1)
        tail = controls.tail(tokens, size)
        # Of a prompt that was prefilled elsewhere the engine takes all, and computes it again.
        last = (tokens if controls.whole(tokens) else readable) // size
        self._let_go(tracked)
        # A thread begins only when this one waits for its answer: what is short is named here.
        if last * size * len(self.names.parts) <= NAMED_AT_ONCE:
            tracked.chain.upto(last)
        tracked.asked = tracked.asked or time.monotonic()
        tracked.question = self._lookups.ask(Question(
            tracked.chain, min(computed // size, last), last,
            read=tracked.controls.read, tail=tail))

    def matched(self, request: Request, computed: int) -> tuple[int | None, bool]:
        self._look()
        known = self._tracked.get(request.request_id)
        if known is not None:
            known.local = computed
        if self._heard_by != 0.0 and self._wait_to_hear():
            return None, False
        tracked = self._track(request)
        if (tracked is None and not self._left_out(request)
                and reading(request.lora_request, self._options.lookup_timeout)):
            return None, False
        if tracked is None or tracked.failed or tracked.loading or not tracked.controls.read:
            return 0, False
        assert self.names is not None and self._lookups is not None
        tracked.promise = None
        question = tracked.question
        size = self.names.chunk_tokens
        tracked.local = computed
        grow = question is not None and not tracked.again and question.may_grow()
        tracked.again |= grow
        if question is None or question.stale() or grow or computed // size < question.first:
            self._ask(tracked, computed)  # the engine's own hit may have become shorter
            question = tracked.question
        assert question is not None
        start = time.monotonic()
        left = min(WAIT_SECONDS, max(0.0, STEP_WAIT_SECONDS - self._waited))
        answered = self._lookups.wait(question, left)
        seconds = time.monotonic() - start
        self._waited += seconds
        self._stats.add("lookup_seconds", seconds)
        if answered is None:
            return None, False
        self._stats.add("lookups", not question.counted)
        question.counted = True
        if not answered:
            tracked.failed = True
            return 0, False
        tracked.saved = max(tracked.saved, question.held)
        tracked.looked = question.answered or start
        if self._on_its_way(tracked, question):
            self._ask(tracked, computed)
            return None, False
        return self._promise(tracked, question, computed)

    def _wait_to_hear(self) -> bool:
        """The first step brings what the workers say, where it did not come at start."""
        now = time.monotonic()
        self._heard_by = self._heard_by or now + HEAR_SECONDS
        return now < self._heard_by

    def _on_its_way(self, tracked: Tracked, question: Question) -> bool:
        """What another engine has promised may become visible a moment after its answer."""
        if not tracked.controls.handed:
            return False
        size = tracked.chain.names.chunk_tokens
        told = tracked.controls.readable(tracked.controls.tokens) // size
        there = (question.first + question.leased >= min(told, question.last)
                 and question.tail_leased == bool(question.tail))
        return not there and time.monotonic() - tracked.asked < TAIL_SECONDS

    def _promise(self, tracked: Tracked, question: Question,
                 computed: int) -> tuple[int | None, bool]:
        assert self.names is not None
        size = self.names.chunk_tokens
        last = question.first + question.leased
        end = question.tail if question.tail_leased else last * size
        if end <= computed:
            # Until it is stale the answer stands, should the engine ask again.
            question.leased, question.tail_leased, question.cut = 0, False, False
            self._drop(question)
            return 0, False
        first = computed // size
        keys = tracked.chain.upto(last)[first:]
        if question.tail_leased:
            keys = np.concatenate([keys, tracked.chain.tail(end)])
        wait = end < tracked.request.num_tokens and self._small(len(keys))
        tracked.promise = Promise(computed, end, first, keys, wait)
        return end - computed, not wait

    def _small(self, chunks: int) -> bool:
        """Whether the step had better wait for a load of so many chunks. What fails then may have
        been taken by others from the engine's own cache: so only of a store in this process, whose
        leased values cannot go."""
        if self._groups > 1 or self._ahead or self._options.load == "async":
            return False
        if self._options.load == "sync":
            return True
        rate = min(r.copy_rate for r in self._ranks)
        if rate <= 0 or not self._options.embedded or self._ranks[0].link:
            return False
        seconds = chunks * self.chunk_bytes() / rate
        return seconds < max(SMALL_SECONDS, SMALL_SHARE * self._step_seconds)

    def allocated(self, request: Request, blocks: KVCacheBlocks, tokens: int) -> None:
        tracked = self._tracked.get(request.request_id)
        promise = tracked.promise if tracked else None
        if tracked is None or promise is None:
            return
        tracked.promise = None
        if tokens == 0:
            self._let_go(tracked)  # another connector has it
            return
        question, tracked.question = tracked.question, None
        load = Transfer(self._next_id(), request.request_id, promise.keys,
                        self._blocks_of(blocks.get_block_ids(), promise), wait=promise.wait)
        if tokens != promise.end - promise.start:
            load.keys = np.zeros_like(load.keys)  # nobody holds these: it is all computed
        self._stats.add("lookup_hits", 1)
        self._stats.add("hit_tokens", tokens)
        tracked.loading = True
        tracked.local = promise.end
        tracked.blocks = []  # until a step names them: those it had are others' by now
        self._loads[load.id] = tracked, question, self._world
        self._begin.append(load)

    def _blocks_of(self, table: Iterable[list[int]], promise: Promise) -> list[np.ndarray]:
        """The blocks of each group; none for what the engine has computed already."""
        assert self.names is not None
        size, found = self.names.chunk_tokens, []
        for ids, block in zip(table, self.names.block_tokens):
            first = promise.first * size // block
            some = np.asarray(ids[first:-(-promise.end // block)], np.int64)
            some[:promise.start // block - first] = 0
            found.append(some)
        return found

    # --- what a step begins ---

    def build(self, output: SchedulerOutput) -> Step:
        now = time.monotonic()
        idle = output.total_num_scheduled_tokens == 0
        if not idle and self._last_step:
            self._step_seconds = 0.8 * self._step_seconds + 0.2 * (now - self._last_step)
        self._last_step = 0.0 if idle else now
        self._waited = 0.0
        loads, self._begin = self._begin, []
        self._steps += 1
        step = Step(loads=loads, epoch=self._epoch, number=self._steps, since=self._since,
                    fresh=self._fresh, idle=idle)
        if step.fresh:
            self._fresh, self._fresh_step = False, step.number
        if self.names is not None:
            try:
                self._plan(output, step)
            except Exception:
                logger.exception("cairn: planning a step failed; it saves no more")
        return step

    def _plan(self, output: SchedulerOutput, step: Step) -> None:
        seen: list[tuple[Tracked, int]] = []
        for new in output.scheduled_new_reqs:
            tracked = self._tracked.get(new.req_id)
            if tracked:
                tracked.blocks = [list(ids) for ids in new.block_ids]
                seen.append((tracked, new.num_computed_tokens))
        cached = output.scheduled_cached_reqs
        for i, name in enumerate(cached.req_ids):
            tracked = self._tracked.get(name)
            if tracked:
                more = cached.new_block_ids[i] or ()
                if name in cached.resumed_req_ids:
                    tracked.blocks = [list(ids) for ids in more]
                    seen.append((tracked, cached.num_computed_tokens[i]))
                else:
                    for known, ids in zip(tracked.blocks, more):
                        known.extend(ids)
                    tracked.local = cached.num_computed_tokens[i]
                    seen.append((tracked, tracked.local))
        step.fence = [t.tail_save for t, _ in seen if t.tail_save]
        for tracked, _ in seen:
            tracked.tail_save = 0
        assert self.names is not None
        block = max(self.names.block_tokens)
        if any(computed - tracked.local >= block for tracked, computed in seen):
            return  # another connector loads for this step: what it computes may be wrong yet
        for tracked, computed in seen:
            self._plan_request(tracked, computed, output, step)

    def _plan_request(self, tracked: Tracked, computed: int, output: SchedulerOutput,
                      step: Step) -> None:
        names, name = tracked.chain.names, tracked.request.request_id
        if names is not self.names or not self._clean:
            return
        end = computed + output.num_scheduled_tokens.get(name, 0)
        chunks = (tracked.controls.writable(tracked.request, end, self._options)
                  // names.chunk_tokens)
        table = block_table(output, name, tracked.blocks)
        if chunks > tracked.saved:
            first, tracked.saved = tracked.saved, chunks
            keys = tracked.chain.upto(chunks)
            wanted = ~self._saves.known(keys[first:], tracked.looked)
            for at, end_at in _runs(wanted):
                self._save(tracked, keys, first + at, first + end_at, table, step)
        if (computed < tracked.request.num_prompt_tokens <= end
                and tracked.controls.hands_over(tracked.request, self._options)):
            self._save_tail(tracked, table, step)

    def _save_tail(self, tracked: Tracked, table: list[list[int]], step: Step) -> None:
        """The last, partial page of a prompt, for the engine that goes on with it."""
        names, tokens = tracked.chain.names, tracked.request.num_prompt_tokens
        first = tokens // names.chunk_tokens
        if tokens % names.chunk_tokens == 0:
            return
        keys = tracked.chain.tail(tokens)
        if not self._saves.room(self.chunk_bytes()):
            self._saves.skipped += 1
            return
        blocks = [np.asarray(ids[first * names.chunk_tokens // size:-(-tokens // size)], np.int64)
                  for ids, size in zip(table, names.block_tokens)]
        save = Transfer(self._next_id(), tracked.request.request_id, keys, blocks,
                        parents=tracked.chain.parents(first))
        self._saves.begin(save, self.chunk_bytes())
        step.saves.append(save)
        tracked.tail_save = save.id

    def _save(self, tracked: Tracked, keys: np.ndarray, first: int, last: int,
              table: list[list[int]], step: Step) -> None:
        assert self.names is not None
        room = min(last - first, self._saves.room(self.chunk_bytes()))
        self._saves.skipped += last - first - room
        if room == 0:
            return
        last = first + room
        blocks = [np.asarray(ids[first * per:last * per], np.int64) for ids, per in
                  zip(table, (self.names.chunk_blocks(g) for g in range(self._groups)))]
        save = Transfer(self._next_id(), tracked.request.request_id, keys[first:last], blocks,
                        parents=keys[first - 1] if first else None)
        self._saves.begin(save, room * self.chunk_bytes())
        step.saves.append(save)  # whatever comes now: what is pinned must end
        size = self.names.chunk_tokens
        self._events.planned(save, tracked.request, first * size, last * size)

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    # --- what has ended ---

    def ended(self, output: KVConnectorOutput) -> None:
        report = output.kv_connector_worker_meta
        if not isinstance(report, Report):
            report = Report()
        self.set_described(report.described)
        if report.stale > self._since:
            logger.info("cairn: weights have been written over: what was stored before is not "
                        "found from here on")
            self._since = report.stale
            self.reset(computed_since=report.stale <= self._fresh_step)
        for name in report.failed:
            tracked = self._tracked.get(name)
            if tracked:
                tracked.failed = True
                tracked.saved = 0
        for number, ranks in report.ended.items():
            self._load_ended(number, ranks)
        whole, torn = self._saves.ended(report.ended, report.refused)
        self._events.ended(whole, torn)
        if output.invalid_block_ids:
            self._forget_blocks(output.invalid_block_ids)
            # What was computed beside a failed load is computed again, and was not saved.
            for save in torn:
                tracked = self._tracked.get(save.request)
                if tracked:
                    tracked.saved = 0

    def _forget_blocks(self, bad: set[int]) -> None:
        """Takes blocks that did not arrive, and what was computed from them, out of the engine's
        own cache: their request may end before it has computed them again."""
        pool = self._saves.pool
        if pool is None or self._groups > 1:
            return
        wrong = {b for b in bad if 0 < b < len(pool.blocks)}
        for tracked in self._tracked.values():
            for ids in tracked.blocks:
                first = next((i for i, b in enumerate(ids) if b in bad), None)
                if first is not None:
                    wrong.update(b for b in ids[first:] if b)
        pool.evict_blocks(wrong)

    def _load_ended(self, number: int, ranks: int) -> None:
        if number not in self._loads:
            return
        tracked, question, left = self._loads.pop(number)
        if left > ranks:
            self._loads[number] = tracked, question, left - ranks
            return
        tracked.loading = False
        self._drop(question)

    def busy(self) -> bool:
        """Whether the engine must go on stepping to hear of what is on its way."""
        return len(self._saves) > 0

    def frees(self) -> bool:
        """Whether blocks will come free when saves end, so that the engine need not preempt."""
        return self._saves.hold_alone()

    def finished(self, request: Request) -> dict[str, Any] | None:
        tracked = self._tracked.pop(request.request_id, None)
        if tracked is None:
            return None
        self._let_go(tracked)
        return tracked.controls.told(request, tracked.chain.names.chunk_tokens, self._options)

    def reset(self, computed_since: bool = False) -> bool:
        """What the engine asks for when its weights have changed under it: from here on nothing
        that was stored before is named, and nothing stored now will be named by others.
        computed_since: what the engine holds is of the new weights."""
        self._epoch = uuid.uuid4().hex
        for tracked in self._tracked.values():
            self._let_go(tracked)
            tracked.promise = None
        if self.names is not None:
            self.names = Names(self._ranks, self._epoch, self._options.domain)
        self._events.forget()
        self._clean = computed_since or self._emptied()
        if self._clean:
            self._rename()
        else:
            logger.warning("cairn: the engine's own prefix cache may hold KV of other weights, so "
                           "nothing is saved until it is reset")
        return True

    def _rename(self) -> None:
        """Of requests that are here already nothing is held that was computed before."""
        if self.names is None:
            return
        for tracked in self._tracked.values():
            tracked.chain = Chain(self.names, tracked.request)
            tracked.saved, tracked.looked = 0, 0.0

    def _look(self) -> None:
        """Before the engine takes blocks for a step."""
        if self._fresh or not self._emptied():
            return
        self._fresh = True
        if not self._clean:
            self._clean = True
            self._rename()

    def _emptied(self) -> bool:
        """Whether no block of the engine holds anything that was computed before."""
        pool = self._saves.pool
        return pool is None or (pool.get_num_free_blocks() >= pool.num_gpu_blocks - 1
                                and not len(pool.cached_block_hash_to_block))

    def take_stats(self) -> Stats:
        stats, self._stats = self._stats, Stats()
        skipped, self._saves.skipped = self._saves.skipped, 0
        stats.add("saves_skipped", skipped)
        if self._lookups is not None:
            late, failed, refused = self._lookups.take_counts()
            stats.add("lookups_late", late)
            stats.add("lookups_failed", failed)
            stats.add("lookups_refused", refused)
        return stats

    def take_events(self) -> list[Any]:
        return self._events.take()

    def _let_go(self, tracked: Tracked) -> None:
        question, tracked.question = tracked.question, None
        self._drop(question)

    def _drop(self, question: Question | None) -> None:
        if question is not None and self._lookups is not None:
            self._lookups.drop(question)


def _runs(wanted: np.ndarray) -> list[tuple[int, int]]:
    """The stretches of True, as first and end."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], wanted, [False]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist()))
