"""kv_connector_extra_config, read once: every key is known, every value has a meaning, or the
engine does not start and a sentence says what to write instead."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from .errors import InvalidError
from .identity import PUBLIC, Domain, domain_of_file

if TYPE_CHECKING:
    from vllm.config import VllmConfig

UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
SAVES = ("all", "prompt", "none")
LOADS = ("auto", "async", "sync")


@dataclass(frozen=True)
class Options:
    uri: str
    domain: Domain = field(default=PUBLIC, repr=False)
    timeout: float = 5.0
    """Seconds that a load, and a save, may take in the store."""
    lookup_timeout: float = 0.5
    """Seconds that a request may wait to hear what is held, beside the time to read that."""
    save: str = "all"
    """What is saved: "all" that is computed, of the "prompt" only, or "none"."""
    min_tokens: int = 0
    """Shorter prompts are neither looked up nor saved."""
    inflight: int = 512 << 20
    """Bytes of saves on their way. What comes beyond is not saved."""
    load: str = "auto"
    """"async": the engine computes other requests meanwhile; "sync": the step waits; "auto": by
    what is measured to be cheaper."""

    @property
    def embedded(self) -> bool:
        return self.uri.startswith("embedded:")


def options_of(config: VllmConfig) -> Options:
    assert config.kv_transfer_config is not None
    given = dict(config.kv_transfer_config.kv_connector_extra_config)
    known = [f.name for f in fields(Options) if f.name != "domain"] + ["domain_key_file"]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it takes {', '.join(known)}"
            raise InvalidError(f"kv_connector_extra_config has {name!r}, which cairn does not know"
                               + hint)
    uri = given.get("uri")
    if not isinstance(uri, str) or not uri:
        raise InvalidError("kv_connector_extra_config needs \"uri\", for instance "
                           "\"unix:/run/cairn/cairn.sock\" or "
                           "\"embedded:///var/lib/cairn?ram=4GiB&disk=64GiB\"")
    read: dict[str, Any] = {"uri": uri}
    for name, value in given.items():
        if name == "domain_key_file":
            read["domain"] = domain_of_file(value)
        elif name in ("timeout", "lookup_timeout"):
            read[name] = _number(name, value, float, 0.001)
        elif name == "min_tokens":
            read[name] = _number(name, value, int, 0)
        elif name == "inflight":
            read[name] = _bytes(name, value)
        elif name in ("save", "load"):
            read[name] = _one_of(name, value, SAVES if name == "save" else LOADS)
    return Options(**read)


def _number(name: str, value: Any, kind: type, least: float) -> Any:
    try:
        number = kind(value)
        if isinstance(value, bool) or not least <= number < 1e9:
            raise ValueError
    except (TypeError, ValueError):
        raise InvalidError(f"{name} is {value!r}; give a number of at least {least}") from None
    return number


def _bytes(name: str, value: Any) -> int:
    match = re.fullmatch(r"(\d{1,15})(KiB|MiB|GiB|)", str(value))
    if not match or isinstance(value, bool) or int(match[1]) == 0:
        raise InvalidError(f"{name} is {value!r}; give bytes, for instance \"512MiB\"")
    return int(match[1]) * UNITS[match[2]]


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise InvalidError(f"{name} is {value!r}; give {', '.join(map(repr, known))}")
    return str(value)


def refusal(config: VllmConfig) -> str | None:
    """Why an engine of this configuration runs without the cache; None: it has it. What is refused
    for its KV cache is found where that is allocated."""
    parallel = config.parallel_config
    if getattr(config, "speculative_config", None) is not None:
        return "speculative decoding is not supported yet; leave it out to use the cache"
    if options_of(config).embedded and (parallel.world_size > 1
                                        or parallel.data_parallel_size > 1):
        return ("an embedded store serves one worker, and this engine has several; run cairnd and "
                "give \"uri\": \"unix:/run/cairn/cairn.sock\"")
    if (getattr(parallel, "decode_context_parallel_size", 1) > 1
            or getattr(parallel, "prefill_context_parallel_size", 1) > 1):
        return "context parallelism is not supported yet"
    return None
