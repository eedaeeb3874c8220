"""A real vLLM with Cairn behind it, and what a request may ask of it, what others hear of it, and
what new weights do. A program: MODEL URI; prints one JSON object."""
import contextlib
import sys
import tempfile
import time
from pathlib import Path

from vllm_models import Engine, answers

TOKENS, SECONDS = 600, 120


class Heard:
    """The KV events that the engine publishes, as a router gets them."""

    def __init__(self, endpoint: str) -> None:
        import msgspec
        import zmq
        from vllm.distributed.kv_events import KVEventBatch
        self._socket = zmq.Context.instance().socket(zmq.SUB)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._socket.connect(endpoint)
        self._decode = msgspec.msgpack.Decoder(type=KVEventBatch).decode
        self.blocks: dict[str, list] = {}

    def take(self, seconds: float) -> None:
        while self._socket.poll(seconds * 1000):
            for event in self._decode(self._socket.recv_multipart()[-1]).events:
                if type(event).__name__ == "BlockStored":
                    self.blocks.setdefault(event.medium, []).append(event)

    def until(self, medium: str, tokens: list[int]) -> list:
        """The hashes of the blocks of these tokens, as told for a medium."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            for event in self.blocks.get(medium, ()):
                if event.token_ids == tokens:
                    return event.block_hashes
            self.take(0.1)
        return []


def metrics() -> dict[str, float]:
    from prometheus_client import REGISTRY
    return {sample.name + "/" + sample.labels.get("source", ""): sample.value
            for family in REGISTRY.collect() for sample in family.samples
            if sample.name.startswith(("vllm:cairn", "vllm:external", "vllm:prompt_tokens"))}


def weights(model: str):
    from safetensors import safe_open
    with contextlib.ExitStack() as stack:
        for path in Path(model).glob("*.safetensors"):
            file = stack.enter_context(safe_open(path, "pt"))
            for name in file.keys():
                yield name, file.get_tensor(name)


def main() -> None:
    say = answers()
    with tempfile.TemporaryDirectory(prefix="cairn") as folder:  # a socket's path is short
        say(run(*sys.argv[1:], f"ipc://{folder}/events"))


def run(model: str, uri: str, endpoint: str) -> dict:
    from vllm.config import KVEventsConfig
    engine = Engine(Path(model), uri, enable_prompt_embeds=True, disable_log_stats=False,
                    kv_events_config=KVEventsConfig(enable_kv_cache_events=True, publisher="zmq",
                                                    endpoint=endpoint))
    heard = Heard(endpoint)
    end = time.monotonic() + SECONDS
    while not heard.blocks and time.monotonic() < end:  # who subscribes late hears nothing older
        engine.reset()
        engine.answer(list(range(1000, 1200)), write=False)
        heard.take(0.2)

    moved = engine.halves["WORKER"].totals.data
    prompt = [3 + (i * i + 7 * i) % 990 for i in range(TOKENS)]
    said = {}

    def ask(name: str, what=prompt, **controls) -> None:
        missed = moved.get("load_misses", 0)
        said[name] = engine.answer(what, **controls)
        said[name]["missed"] = moved.get("load_misses", 0) - missed

    for name, controls in (("unwritten", {"write": False}), ("cold", {})):
        engine.reset()
        ask(name, **controls)
    ask("own")
    for name, controls in (("unread", {"read": False}), ("part", {"max_tokens": 300}),
                           ("typo", {"raed": False}), ("all", {})):
        engine.reset()
        ask(name, **controls)
    said["events"] = [heard.until(medium, prompt[:512]) for medium in ("GPU", "cairn")]
    said["metrics"] = metrics()

    embeddings = {"prompt_embeds": next(w for name, w in weights(model)
                                        if name.endswith("embed_tokens.weight"))[prompt]}
    saved = moved["save_bytes"]
    for name in ("embedded", "embedded again"):
        engine.reset()
        ask(name, embeddings)
    said["saved of embeddings"] = moved["save_bytes"] - saved

    # As trainers do: nobody tells the connector.
    engine.reset()
    engine.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": (
        (name, w * 1.1 if "k_proj" in name else w) for name, w in weights(model))})
    ask("trained")
    engine.reset()
    ask("trained, computed", read=False)
    ask("trained, own")
    engine.reset()
    ask("trained, loaded")

    def write(factor: float) -> None:
        """As extensions of vLLM's worker do."""
        engine.llm.collective_rpc(lambda worker: worker.model_runner.model.load_weights(
            (name, w * factor) for name, w in weights(model) if "input_layernorm" in name))

    write(3)
    engine.reset()
    ask("written")
    engine.reset()
    ask("written, loaded")
    engine.reset()
    ask("written, computed", read=False)
    ask("written, own")
    engine.core.pause_scheduler()
    write(2)
    engine.core.resume_scheduler()
    ask("paused")
    engine.reset()
    ask("paused, loaded")
    for level, tags in ((0, ["scheduling"]), (1, None)):
        engine.llm.sleep(level=level)
        engine.llm.wake_up(tags)
        ask(f"slept, {level}")
        engine.reset()
        ask(f"slept, {level}, loaded")
    engine.core.shutdown()
    return said


if __name__ == "__main__":
    main()
