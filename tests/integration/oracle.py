"""What a killed store promised: the other side of tests/crash/worker.c.

Only what came out of the worker's pipe counts as promised. A key that is read must hold the bytes
of a generation that is still allowed; a value whose flush was acknowledged must be there unless so
much was appended since that its segment may have been reclaimed."""

from dataclasses import dataclass

OK, MISS, EXISTS = 0, -1, -2
BLOCK = 4096


@dataclass
class Key:
    current: int = 0  # generation, 0 = nothing
    last: int = 0  # highest generation ever begun
    durable: bool = False
    maybe_gone: bool = False  # an operation on it ended badly
    put_at: int = 0  # bytes appended when it was put
    begun: tuple | None = None  # ("p", generation, replace, length) or ("d",)


class Wrong(AssertionError):
    pass


class Oracle:
    def __init__(self, keys: int, disk: int, segment: int):
        self.keys = [Key() for _ in range(keys)]
        # Reinserted records, segment tails and footers take their share of the log.
        self.reach = (disk - 6 * segment) / 1.6
        self.appended = 0
        self.flushes: dict[int, dict[int, int]] = {}
        self.verified = 0
        self.certain = 0

    def allowed(self, key: Key) -> set[int]:
        values = {key.current}
        if not self.certainly_held(key):
            values.add(0)
        if key.begun and key.begun[0] == "p":
            values.add(key.begun[1])
            if key.begun[2]:
                values.add(0)
        elif key.begun:
            values.add(0)
        return values

    def certainly_held(self, key: Key) -> bool:
        return (key.current > 0 and key.durable and not key.maybe_gone
                and self.appended - key.put_at < self.reach)

    def line(self, text: str) -> None:
        word, *rest = text.split()
        if word in "pPdDfFVX":
            getattr(self, {"p": "put_begun", "P": "put_ended", "d": "delete_begun",
                           "D": "delete_ended", "f": "flush_begun", "F": "flush_ended",
                           "V": "seen", "X": "wrong_bytes"}[word])(*rest)

    def put_begun(self, number, gen, replace, length):
        key = self.keys[int(number)]
        key.begun = ("p", int(gen), replace == "1", int(length))
        key.last = int(gen)
        self.appended += (int(length) + BLOCK - 1) // BLOCK * BLOCK + 2 * BLOCK

    def put_ended(self, number, gen, status):
        key = self.keys[int(number)]
        _, _, replace, _ = key.begun
        key.begun = None
        if int(status) == OK:
            key.current, key.durable, key.maybe_gone = int(gen), False, False
            key.put_at = self.appended
        elif int(status) == EXISTS:
            if replace:
                raise Wrong(f"replace of key {number} says it exists")
            if not key.current:
                raise Wrong(f"put of key {number} says it exists; nothing is held")
        elif replace:
            key.maybe_gone = True

    def delete_begun(self, number):
        self.keys[int(number)].begun = ("d",)
        self.appended += BLOCK

    def delete_ended(self, number, status):
        key = self.keys[int(number)]
        key.begun = None
        if int(status) == MISS and self.certainly_held(key):
            raise Wrong(f"delete says durable key {number} is not held")
        if int(status) in (OK, MISS):
            key.current = 0
        else:
            key.maybe_gone = True

    def flush_begun(self, number):
        self.flushes[int(number)] = {i: k.current for i, k in enumerate(self.keys) if k.current}

    def flush_ended(self, number, status):
        held = self.flushes.pop(int(number))
        if int(status) != OK:
            return
        for i, gen in held.items():
            if self.keys[i].current == gen:
                self.keys[i].durable = True

    def seen(self, number, gen):
        key = self.keys[int(number)]
        allowed = self.allowed(key)
        if int(gen) not in allowed:
            state = "durable" if key.durable else "not flushed"
            raise Wrong(f"key {number} holds generation {gen}; allowed is {sorted(allowed)} "
                        f"(current {key.current}, {state}, begun {key.begun})")
        self.verified += int(gen) > 0
        self.certain += self.certainly_held(key)
        if key.begun:  # the kill came in the middle: what is found now is what there is
            key.put_at = self.appended
            key.begun = None
        if int(gen) != key.current:
            key.durable = key.maybe_gone = False
        key.current = int(gen)

    def wrong_bytes(self, number, *text):
        raise Wrong(f"key {number}: wrong bytes: {' '.join(text)}")

    def expected(self) -> str:
        return "".join(f"{i} {k.last}\n" for i, k in enumerate(self.keys))

    def killed(self):
        self.flushes.clear()
