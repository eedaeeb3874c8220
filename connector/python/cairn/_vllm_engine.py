"""What the two halves of the vLLM connector share in one process: the store, the engine's pages and
the identity of what is in them."""

from __future__ import annotations

import atexit
import hashlib
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.logger import init_logger

from ._vllm_link import Listener, RemoteStore
from .errors import Error, InvalidError
from .identity import PUBLIC, Domain, Identity
from .store import Store, open as store_open

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

logger = init_logger("vllm.cairn")

MIB = 1 << 20
CHUNK_TOKENS = 256
BLOCK_IS_CHUNK = 128
WHOLE_FILE = 1024 * MIB  # larger files of weights are sampled, and then their time counts too
FLUSH_SECONDS = 60.0
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


class Unsupported(Exception):
    """The engine goes on without the cache; the text says why."""


@dataclass
class Counters:
    """Of one engine, since it started."""

    loaded_blocks: int = 0
    loaded_bytes: int = 0
    load_seconds: float = 0.0
    save_seconds: float = 0.0
    missed_chunks: int = 0
    saved_chunks: int = 0


class Pages:
    """The engine's KV cache as opaque pages: one a block and layer."""

    def __init__(self, caches: dict[str, torch.Tensor], num_blocks: int) -> None:
        self._keep = list(caches.values())
        rows: list[tuple[int, int, int]] = []
        described: list[str] = []
        for name, cache in caches.items():
            if not hasattr(cache, "data_ptr") or cache.device.type != "cpu":
                raise Unsupported("its KV cache is not one CPU tensor a layer")
            if cache.shape[0] != num_blocks:
                raise Unsupported(f"layer {name} has the shape {tuple(cache.shape)} for "
                                  f"{num_blocks} blocks")
            size = cache.element_size()
            extent = 1 + sum((n - 1) * s for n, s in zip(cache.shape[1:], cache.stride()[1:]))
            if extent * num_blocks != cache.numel() or cache.stride(0) < extent:
                raise Unsupported(f"the blocks of layer {name} are not dense: shape "
                                  f"{tuple(cache.shape)}, strides {cache.stride()}")
            row = (cache.data_ptr(), cache.stride(0) * size, extent * size)
            if row not in rows:  # layers may share one cache
                rows.append(row)
            described.append(f"{name} {tuple(cache.shape[1:])} {cache.stride()[1:]} {cache.dtype}")
        if not rows:
            raise Unsupported("it has no KV cache")
        self.layers = len(rows)
        self._base, self._stride, self._len = (np.array(c, np.int64) for c in zip(*rows))
        self.block_bytes = int(self._len.sum())
        first = self._keep[0]
        self.dtype = str(first.dtype).removeprefix("torch.")
        self.layout = (f"block {tuple(first.shape[1:])} strides {tuple(first.stride()[1:])}, "
                       f"layers {_digest(described)}")

    def runs(self, blocks: np.ndarray) -> np.ndarray:
        """Address and length of every layer's page of these blocks, block after block."""
        out = np.empty((len(blocks), self.layers, 2), np.uint64)
        out[:, :, 0] = self._base + blocks[:, None] * self._stride
        out[:, :, 1] = self._len
        return out.reshape(-1, 2)


@dataclass
class Engine:
    config: VllmConfig
    cache: KVCacheConfig
    uri: str
    store: Any  # a Store, or a RemoteStore where the worker has it
    domain: Domain
    timeout: float
    block_tokens: int
    chunk_blocks: int
    users: int = 0
    pages: Pages | None = None
    identity: Identity | None = None
    counters: Counters = field(default_factory=Counters)
    fields: dict[str, Any] = field(default_factory=dict)
    listener: Listener | None = None

    @property
    def chunk_tokens(self) -> int:
        return self.block_tokens * self.chunk_blocks

    def register(self, caches: dict[str, torch.Tensor]) -> None:
        try:
            pages = Pages(caches, self.cache.num_blocks)
            value = pages.block_bytes * self.chunk_blocks
            if value > self.store.value_max:
                raise Unsupported(
                    f"a chunk of {self.chunk_tokens} tokens has {value} bytes and the store takes "
                    f"values up to {self.store.value_max}; give it more ram")
            self.fields = _identity_fields(self, pages)
        except Unsupported as why:
            logger.warning("cairn: this engine runs without the cache: %s", why)
            return
        self.pages = pages
        self.rename()
        if _apart(self.config):
            self.listener = Listener(_engine_id(self.config), self)
        logger.info("cairn: %s: chunks of %d tokens, %d bytes", self.uri, self.chunk_tokens, value)

    def rename(self, **more: Any) -> None:
        if self.fields:
            self.fields.update(more)
            self.identity = Identity(**self.fields)
            self.store.note(self.identity)


_lock = threading.Lock()
_engines: dict[str, Engine] = {}
_stores: dict[str, tuple[Store, int]] = {}


def engines() -> list[Engine]:
    """The engines of this process, with their counters and stores."""
    return list(_engines.values())


def _engine_id(config: VllmConfig) -> str:
    assert config.kv_transfer_config is not None and config.kv_transfer_config.engine_id is not None
    return config.kv_transfer_config.engine_id


def _apart(config: VllmConfig) -> bool:
    """The worker is in another process than the scheduler."""
    return bool(config.parallel_config.distributed_executor_backend != "uni")


def engine_open(config: VllmConfig, cache: KVCacheConfig, scheduler: bool) -> Engine | None:
    """One Engine for both halves of a connector that are in one process. None: it goes on without
    the cache."""
    name = _engine_id(config)
    with _lock:
        engine = _engines.get(name)
        if engine is None:
            try:
                engine = _make(config, cache, scheduler and _apart(config))
            except InvalidError:
                raise
            except (Unsupported, Error, OSError) as why:
                logger.warning("cairn: this engine runs without the cache: %s", why)
                return None
            _engines[name] = engine
        engine.users += 1
        return engine


def engine_close(engine: Engine) -> None:
    """The last user makes what was stored durable and closes the store."""
    with _lock:
        engine.users -= 1
        if engine.users > 0:
            return
        for name, held in list(_engines.items()):
            if held is engine:
                del _engines[name]
        if engine.listener is not None:
            engine.listener.close()
        if isinstance(engine.store, RemoteStore):
            engine.store.close()
        else:
            _store_release(engine.uri)


def _make(config: VllmConfig, cache: KVCacheConfig, remote: bool) -> Engine:
    assert config.kv_transfer_config is not None
    extra = config.kv_transfer_config.kv_connector_extra_config
    unknown = sorted(set(extra) - {"uri", "domain_key_file", "timeout"})
    if unknown:
        raise InvalidError(f"kv_connector_extra_config has {unknown[0]!r}; cairn takes \"uri\", "
                           "\"domain_key_file\" and \"timeout\"")
    uri = extra.get("uri")
    if not isinstance(uri, str):
        raise InvalidError("kv_connector_extra_config needs \"uri\", for instance "
                           "\"embedded:///var/lib/cairn?ram=4GiB&disk=64GiB\"")
    parallel = config.parallel_config
    if parallel.world_size > 1 or parallel.data_parallel_size > 1:
        raise Unsupported("an embedded store serves one worker, and this engine has several")
    groups = cache.kv_cache_groups
    if len(groups) != 1 or not _plain(groups[0].kv_cache_spec):
        raise Unsupported("only models whose layers all attend to the whole context are taken")
    block = groups[0].kv_cache_spec.block_size
    per = 1 if block >= BLOCK_IS_CHUNK else -(-CHUNK_TOKENS // block)
    domain: Domain = PUBLIC
    if "domain_key_file" in extra:
        try:
            domain = Path(extra["domain_key_file"]).read_bytes()
        except OSError as why:
            raise InvalidError(f"domain_key_file cannot be read: {why}") from why
        if not 1 <= len(domain) <= 64:
            raise InvalidError("domain_key_file must hold 1 to 64 bytes")
    store = RemoteStore(_engine_id(config)) if remote else _store_acquire(uri)
    engine = Engine(config, cache, uri, store, domain, float(extra.get("timeout", 30.0)), block,
                    per)
    if isinstance(store, RemoteStore):
        engine.identity = store.identity()
        if engine.identity is None:
            raise Unsupported("its worker does so; the worker's log says why")
        engine.fields = dict(engine.identity.fields)
    return engine


def _plain(spec: Any) -> bool:
    from vllm.v1.kv_cache_interface import FullAttentionSpec, UniformTypeKVCacheSpecs
    if isinstance(spec, UniformTypeKVCacheSpecs):
        return all(_plain(s) for s in spec.kv_cache_specs.values())
    return (isinstance(spec, FullAttentionSpec) and not spec.non_causal
            and spec.attention_chunk_size is None)


def _store_acquire(uri: str) -> Store:
    """One store a URI and process: a log has one owner."""
    store, users = _stores.get(uri) or (store_open(uri), 0)
    _stores[uri] = store, users + 1
    return store


def _store_release(uri: str) -> None:
    store, users = _stores[uri]
    _stores[uri] = store, users - 1
    if users == 1:
        del _stores[uri]
        _finish(store)


def _finish(store: Store) -> None:
    try:
        if store.stats().get("disk"):
            store.flush(FLUSH_SECONDS)
    except Error as why:
        logger.warning("cairn: not all of the cache could be made durable: %s", why)
    store.close()


@atexit.register
def _finish_all() -> None:
    """An engine in the main process may never be shut down."""
    while _stores:
        _, (store, _) = _stores.popitem()
        _finish(store)


# --- identity ---


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _identity_fields(engine: Engine, pages: Pages) -> dict[str, Any]:
    import vllm
    config = engine.config
    model, parallel = config.model_config, config.parallel_config
    spec = engine.cache.kv_cache_groups[0].kv_cache_spec
    folder = _model_folder(model)
    return {
        "model": folder.name if Path(model.model).exists() else model.model,
        "weights": "dummy" if config.load_config.load_format == "dummy" else _revision(folder),
        "chunk_tokens": engine.chunk_tokens,
        "kv_dtype": pages.dtype,
        "quant": model.quantization,
        "layout": pages.layout,
        "isa": _isa(model, engine, spec),
        "block_tokens": engine.block_tokens,
        "layers": pages.layers,
        "heads": getattr(spec, "num_kv_heads", None),
        "head_size": getattr(spec, "head_size", None),
        "tp_rank": 0,
        "tp_size": parallel.tensor_parallel_size,
        "pp_rank": 0,
        "pp_size": parallel.pipeline_parallel_size,
        "cp_rank": 0,
        "cp_size": getattr(parallel, "decode_context_parallel_size", 1),
        "engine": f"vllm {vllm.__version__}",
        "compute_dtype": str(model.dtype),
        "cache_dtype": str(config.cache_config.cache_dtype),
        "model_config": _digest([model.hf_config.to_json_string()]),
    }


def _isa(model: Any, engine: Engine, spec: Any) -> str:
    """The CPU kernels order the bytes inside a page by what the processor has."""
    import torch
    capability = torch.backends.cpu.get_cpu_capability()
    try:
        from vllm.v1.attention.backends.cpu_attn import _get_attn_isa
        kind = _get_attn_isa(model.dtype, engine.block_tokens, getattr(spec, "head_size", None))
    except (ImportError, TypeError) as why:
        raise Unsupported(f"this vLLM does not say how it orders the bytes of a page: {why}")
    return f"{kind}/{capability}".replace(" ", "-")


def _model_folder(model: Any) -> Path:
    path = Path(model.model)
    if path.exists():
        return path.resolve()
    try:
        from huggingface_hub import snapshot_download
        return Path(snapshot_download(model.model, revision=model.revision, local_files_only=True))
    except Exception as why:
        raise Unsupported(f"the files of {model.model} are not found, so its weights have no name: "
                          f"{why}") from why


def _revision(model: Path) -> str:
    """A name for the weights: their bytes, or, of large files, samples and the file's time."""
    files = [model] if model.is_file() else sorted(
        f for f in model.rglob("*") if f.suffix in WEIGHTS and f.is_file())
    if not files:
        raise Unsupported(f"{model} has no file of weights")
    whole = hashlib.sha256()
    for file in files:
        info = file.stat()
        whole.update(f"{file.name}\0{info.st_size}\0".encode())
        with file.open("rb", buffering=0) as f:
            if info.st_size <= WHOLE_FILE:
                step, piece = 16 * MIB, 16 * MIB
            else:
                step, piece = 64 * MIB, MIB
                whole.update(f"{info.st_mtime_ns}\0".encode())
            for at in range(0, info.st_size, step):
                f.seek(at)
                whole.update(f.read(piece))
    return whole.hexdigest()[:32]
