"""What a request asks of the cache: kv_transfer_params={"cairn": {...}} of one request.

"read": false    nothing is loaded for it
"write": false   nothing of it is saved
"max_tokens": n  both only for its first n tokens
"tokens": n      another engine has computed so many tokens of it (prefill and decode apart), and
"tail": true     saved the last of them, a chunk that is not full, too
"handoff": true  that other engine: say so in the answer
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

if TYPE_CHECKING:
    from vllm.v1.request import Request

    from ._vllm_options import Options

logger = init_logger("vllm.cairn")

KINDS: dict[str, type] = {"read": bool, "write": bool, "tail": bool, "handoff": bool,
                          "max_tokens": int, "tokens": int}


@dataclass(frozen=True)
class Controls:
    read: bool = True
    write: bool = True
    max_tokens: int | None = None
    tokens: int = 0
    has_tail: bool = False
    handoff: bool = False

    @property
    def nothing(self) -> bool:
        return not self.read and not self.write

    @property
    def handed(self) -> bool:
        """Another engine says that it has saved this prompt."""
        return self.read and self.tokens > 0

    def readable(self, tokens: int) -> int:
        return tokens if self.max_tokens is None else min(tokens, self.max_tokens)

    def tail(self, tokens: int, chunk_tokens: int) -> int:
        """The tokens of a whole prompt whose last chunk is not full, if that was saved too."""
        return tokens if self.has_tail and self.whole(tokens) and tokens % chunk_tokens else 0

    def whole(self, tokens: int) -> bool:
        """Whether another engine has saved all of a prompt of so many tokens."""
        return self.handed and self.tokens == tokens == self.readable(tokens)

    def hands_over(self, request: Request, options: Options) -> bool:
        """Whether all of its prompt is saved for the engine that goes on with it."""
        tokens = request.num_prompt_tokens
        return self.handoff and self.writable(request, tokens, options) == tokens

    def told(self, request: Request, chunk_tokens: int, options: Options) -> dict[str, Any] | None:
        """What the answer says to that engine."""
        if not self.hands_over(request, options):
            return None
        tokens = request.num_prompt_tokens
        return {"cairn": {"tokens": tokens, "tail": tokens % chunk_tokens > 0}}

    def writable(self, request: Request, computed: int, options: Options) -> int:
        """How many of the tokens computed may be saved. Of tokens that are sampled but not yet
        known (asynchronous scheduling) the keys are not known either."""
        if not self.write or options.save == "none":
            return 0
        known = request.num_prompt_tokens if options.save == "prompt" else request.num_tokens
        return self.readable(min(computed, known))


def controls_of(request: Request) -> Controls:
    params = request.kv_transfer_params
    given = params.get("cairn") if isinstance(params, dict) else None
    if given is None:
        return Controls()
    read: dict[str, Any] = {}
    for name, value in given.items() if isinstance(given, dict) else [("", given)]:
        kind = KINDS.get(name)
        if kind is None or type(value) is not kind or (kind is int and value < 0):
            logger.warning("cairn: kv_transfer_params: %r: %r means nothing, so this request goes "
                           "without the cache; it takes %s", name, value, ", ".join(KINDS))
            return Controls(read=False, write=False)
        read["has_tail" if name == "tail" else name] = value
    return Controls(**read)
