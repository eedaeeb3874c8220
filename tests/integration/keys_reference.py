#!/usr/bin/env python3
"""A second implementation of chunking/README.md, from its text alone: hashlib and hmac only.

    python3 tests/integration/keys_reference.py > chunking/vectors.json

writes the test vectors. Nothing of the library is imported here, so that a mistake in one
implementation cannot hide in the other.
"""
import hashlib
import hmac
import json
import struct
import sys

PUBLIC_KEY = hashlib.sha256(b"cairn public domain 1").digest()

TEXT = ("model", "weights", "tokenizer", "lora", "quant", "layout")
WORD = ("kv_dtype", "isa")
NUMBER = {
    "chunk_tokens": (1, 1048576),
    "block_tokens": (1, 1048576),
    "layers": (1, 65536),
    "heads": (1, 65536),
    "head_size": (1, 65536),
    "tp_rank": (0, 65535),
    "tp_size": (1, 65536),
    "pp_rank": (0, 65535),
    "pp_size": (1, 65536),
    "cp_rank": (0, 65535),
    "cp_size": (1, 65536),
}


class Refused(ValueError):
    pass


def check_field(name, value):
    """The canonical value bytes of one field."""
    raw_name, raw_value = name.encode(), value.encode()
    if not 1 <= len(raw_name) <= 64 or any(b < 0x20 or b in (0x7F, 0x3D) for b in raw_name):
        raise Refused("name")
    if len(raw_value) > 2048 or b"\0" in raw_value:
        raise Refused("value")
    if name in NUMBER:
        low, high = NUMBER[name]
        if not raw_value or any(b not in b"0123456789" for b in raw_value):
            raise Refused("number")
        if not low <= int(raw_value) <= high:
            raise Refused("bounds")
        return str(int(raw_value)).encode()
    if name in TEXT or name in WORD:
        if not raw_value:
            raise Refused("empty")
    if name in WORD and any(b <= 0x20 or b >= 0x7F for b in raw_value):
        raise Refused("word")
    return raw_value


def canonical(fields):
    """Canonical bytes of a dict of fields."""
    pairs = sorted((name.encode(), check_field(name, value)) for name, value in fields.items())
    values = dict(pairs)
    if len(pairs) > 64 or b"model" not in values or b"chunk_tokens" not in values:
        raise Refused("fields")
    for axis in (b"tp", b"pp", b"cp"):
        rank, size = values.get(axis + b"_rank"), values.get(axis + b"_size")
        if (rank is None) != (size is None) or (rank is not None and int(rank) >= int(size)):
            raise Refused("rank")
    out = b"CAIRNID\x01" + struct.pack("<H", len(pairs))
    for name, value in pairs:
        out += struct.pack("<HH", len(name), len(value)) + name + value
    if len(out) > 3840:
        raise Refused("size")
    return out


def fingerprint(fields):
    return hashlib.sha256(canonical(fields)).digest()


def chain(domain_key, identity, parent, kind, bodies, unit, extras):
    """One key a body; extras: {chunk: [bytes, ...]}."""
    if not 1 <= len(domain_key) <= 64:
        raise Refused("domain key")
    if any(chunk >= len(bodies) for chunk in extras):
        raise Refused("extra past the end")
    keys = []
    for i, body in enumerate(bodies):
        own = extras.get(i, [])
        message = parent + identity
        message += struct.pack("<IIII", kind, len(body) // unit, len(own), len(domain_key))
        message += body
        for extra in own:
            if len(extra) > 65536:
                raise Refused("extra")
            message += struct.pack("<I", len(extra)) + extra
        parent = hmac.new(domain_key, message, hashlib.sha256).digest()
        keys.append(parent)
    return keys


def keys_of_tokens(domain_key, identity, chunk_tokens, parent, tokens, extras):
    bodies = [struct.pack(f"<{len(part)}I", *part)
              for part in (tokens[at:at + chunk_tokens]
                           for at in range(0, len(tokens), chunk_tokens))]
    return chain(domain_key, identity, parent, 1, bodies, 4, extras)


def keys_of_hashes(domain_key, identity, parent, hashes, extras):
    if hashes and not 8 <= len(hashes[0]) <= 64:
        raise Refused("hash length")
    return chain(domain_key, identity, parent, 2, hashes, 1, extras)


# --- reading a vector -----------------------------------------------------------------------------

def expand_bytes(rule):
    """Hex text, or {"length", "start", "step"}: byte i is (start + i * step) mod 256."""
    if isinstance(rule, str):
        return bytes.fromhex(rule)
    return bytes((rule["start"] + i * rule["step"]) & 0xFF for i in range(rule["length"]))


def expand_tokens(rule):
    """A list, or {"length", "start", "step"}: token i is (start + i * step) mod 2**32."""
    if isinstance(rule, list):
        return rule
    return [(rule["start"] + i * rule["step"]) & 0xFFFFFFFF for i in range(rule["length"])]


def evaluate(vector, identities):
    """The keys of one vector of vectors.json."""
    fields = identities[vector["identity"]]
    domain = vector["domain"]
    domain_key = PUBLIC_KEY if domain == {"name": "public"} else expand_bytes(domain["key"])
    parent = bytes.fromhex(vector["parent"]) if vector["parent"] else bytes(32)
    extras = {}
    for extra in vector["extras"]:
        extras.setdefault(extra["chunk"], []).append(expand_bytes(extra["data"]))
    if "hashes" in vector:
        hashes = [bytes.fromhex(h) for h in vector["hashes"]]
        return keys_of_hashes(domain_key, fingerprint(fields), parent, hashes, extras)
    return keys_of_tokens(domain_key, fingerprint(fields), int(fields["chunk_tokens"]), parent,
                          expand_tokens(vector["tokens"]), extras)


# --- the inputs -----------------------------------------------------------------------------------

IDENTITIES = {
    "small": {"model": "m", "chunk_tokens": "4"},
    "usual": {"model": "HuggingFaceTB/SmolLM2-135M-Instruct", "weights": "12fd25f77366fa6b",
              "kv_dtype": "bfloat16", "layout": "lkvbhtd", "block_tokens": "128", "heads": "3",
              "head_size": "64", "layers": "30", "chunk_tokens": "256"},
    "full": {"model": "org/model-70b", "weights": "rev:0f3c", "tokenizer": "sha256:77ab",
             "lora": "adapter-7@2", "kv_dtype": "fp8_e4m3", "quant": "gptq g128 act-order",
             "layout": "2,block,heads,token,size", "isa": "avx512_bf16", "block_tokens": "16",
             "layers": "80", "heads": "2", "head_size": "128", "tp_rank": "3", "tp_size": "4",
             "pp_rank": "0", "pp_size": "2", "cp_rank": "1", "cp_size": "2", "chunk_tokens": "256",
             "rope": "yarn:4.0", "engine": "test"},
    "token": {"model": "m", "chunk_tokens": "1"},
    "widest": {"model": "m", "chunk_tokens": "1048576"},
    "unicode": {"model": "модель-模型-🪨", "chunk_tokens": "4", "größe": "naïve \"quoted\" \\ tab\t"},
    "decomposed": {"model": "nai\u0308ve", "chunk_tokens": "4"},
    "composed": {"model": "na\u00efve", "chunk_tokens": "4"},
    "empty-free": {"model": "m", "chunk_tokens": "4", "note": ""},
    "prefix-names": {"model": "m", "chunk_tokens": "4", "a": "1", "ab": "2", "a-b": "3", "B": "4"},
    "largest": {"model": "m" * 2048, "chunk_tokens": "4", "weights": "w" * 1745},
    "most-fields": {"model": "m", "chunk_tokens": "4", **{f"f{i:02d}": str(i) for i in range(62)}},
}

PUBLIC = {"name": "public"}
KEY32 = {"key": bytes(range(32)).hex()}


def inputs():
    def one(name, identity="small", domain=PUBLIC, parent=None, extras=(), **body):
        return {"name": name, "identity": identity, "domain": domain, "parent": parent,
                "extras": [{"chunk": chunk, "data": data} for chunk, data in extras], **body}

    def run(length, start=0, step=1):
        return {"length": length, "start": start, "step": step}

    salt = "соль-🧂-sal".encode().hex()
    hashes = [hashlib.sha256(b"block %d" % i).hexdigest() for i in range(3)]
    return [
        one("empty prompt", tokens=[]),
        one("one token", tokens=[7]),
        one("one token of value zero", tokens=[0]),
        one("two tokens of value zero", tokens=[0, 0]),
        one("largest token value", tokens=[0xFFFFFFFF]),
        one("token bytes are little-endian", tokens=[0x01020304]),
        one("exactly one chunk", tokens=[1, 2, 3, 4]),
        one("one chunk and a tail of one", tokens=[1, 2, 3, 4, 5]),
        one("tail one short of a chunk", tokens=[1, 2, 3]),
        one("two chunks", tokens=[1, 2, 3, 4, 5, 6, 7, 8]),
        one("second chunk alone", tokens=[5, 6, 7, 8]),
        one("chunks of one token", identity="token", tokens=[1, 2, 3, 4]),
        one("tail in the largest chunk", identity="widest", tokens=run(300)),
        one("full chunks of 256", identity="usual", tokens=run(1024, 1000, 3)),
        one("chunks of 256 and a tail", identity="usual", tokens=run(1000, 1000, 3)),
        one("131,072 tokens", identity="usual", tokens=run(131072, 1, 2654435761)),
        one("every known field", identity="full", tokens=run(257)),
        one("unicode identity", identity="unicode", tokens=[1, 2, 3, 4]),
        one("composed character", identity="composed", tokens=[1, 2, 3, 4]),
        one("decomposed character", identity="decomposed", tokens=[1, 2, 3, 4]),
        one("empty free field", identity="empty-free", tokens=[1, 2, 3, 4]),
        one("largest identity", identity="largest", tokens=[1, 2, 3, 4]),
        one("most fields", identity="most-fields", tokens=[1, 2, 3, 4]),
        one("secret domain", domain=KEY32, tokens=[1, 2, 3, 4, 5]),
        one("domain key of one byte", domain={"key": "61"}, tokens=[1, 2, 3, 4]),
        one("domain key of one byte and a zero", domain={"key": "6100"}, tokens=[1, 2, 3, 4]),
        one("domain key of one zero byte", domain={"key": "00"}, tokens=[1, 2, 3, 4]),
        one("domain key of 64 bytes", domain={"key": run(64, 1, 7)}, tokens=[1, 2, 3, 4]),
        one("domain key of 64 bytes 0xff", domain={"key": "ff" * 64}, tokens=[1, 2, 3, 4]),
        one("domain key of 33 bytes", domain={"key": "aa" * 33}, tokens=[1, 2, 3, 4]),
        one("parent given", parent=bytes(range(100, 132)).hex(), tokens=[1, 2, 3, 4, 5, 6]),
        one("parent all zero is no parent", parent="00" * 32, tokens=[1, 2, 3, 4]),
        one("one extra", tokens=[1, 2, 3, 4], extras=[(0, "00112233")]),
        one("empty extra", tokens=[1, 2, 3, 4], extras=[(0, "")]),
        one("two extras of a chunk", tokens=[1, 2, 3, 4], extras=[(0, "0011"), (0, "2233")]),
        one("two extras the other way", tokens=[1, 2, 3, 4], extras=[(0, "2233"), (0, "0011")]),
        one("extras split elsewhere", tokens=[1, 2, 3, 4], extras=[(0, "001122"), (0, "33")]),
        one("unicode salt", tokens=run(12), extras=[(0, salt)]),
        one("extra of the second chunk", tokens=run(12), extras=[(1, "abcd")]),
        one("extras of several chunks", tokens=run(14),
            extras=[(0, salt), (1, "01"), (1, "02"), (1, ""), (3, "ff" * 32)]),
        one("extra of 65,536 bytes", tokens=run(5), extras=[(0, run(65536, 7, 31))]),
        one("65,536 bytes twice and a tail", identity="usual", domain={"key": run(64, 9, 5)},
            tokens=run(300), extras=[(0, run(65536)), (1, run(65536, 1, 3)), (1, run(1))]),
        one("an extra that looks like a token", tokens=[1, 2, 3], extras=[(0, "04000000")]),
        one("no hashes", hashes=[]),
        one("three hashes of 32 bytes", identity="usual", hashes=hashes),
        one("hashes of 8 bytes", hashes=["0001020304050607", "08090a0b0c0d0e0f"]),
        one("hashes of 64 bytes", domain=KEY32, hashes=["5a" * 64, "a5" * 64]),
        one("a hash with the bytes of tokens", hashes=["01000000020000000300000004000000"]),
        one("hashes with extras and a parent", identity="full", domain=KEY32,
            parent="11" * 32, hashes=hashes, extras=[(0, salt), (2, "07"), (2, "08")]),
    ]


def refused_records():
    """Bytes that no canonical record has, each with the reason."""
    def record(*pairs, head=b"CAIRNID\x01", count=None):
        out = head + struct.pack("<H", len(pairs) if count is None else count)
        for name, value in pairs:
            out += struct.pack("<HH", len(name), len(value)) + name + value
        return out.hex()

    chunk, model = (b"chunk_tokens", b"4"), (b"model", b"m")
    return [
        {"why": "no bytes", "canonical": ""},
        {"why": "magic", "canonical": record(chunk, model, head=b"CAIRNIX\x01")},
        {"why": "version", "canonical": record(chunk, model, head=b"CAIRNID\x02")},
        {"why": "not sorted", "canonical": record(model, chunk)},
        {"why": "a name twice", "canonical": record(chunk, model, model)},
        {"why": "a byte too many", "canonical": record(chunk, model) + "00"},
        {"why": "a byte too few", "canonical": record(chunk, model)[:-2]},
        {"why": "count too high", "canonical": record(chunk, model, count=3)},
        {"why": "count too low", "canonical": record(chunk, model, count=1)},
        {"why": "no model", "canonical": record(chunk)},
        {"why": "no chunk_tokens", "canonical": record(model)},
        {"why": "a leading zero", "canonical": record((b"chunk_tokens", b"04"), model)},
        {"why": "not a number", "canonical": record((b"chunk_tokens", b"4x"), model)},
        {"why": "out of bounds", "canonical": record((b"chunk_tokens", b"1048577"), model)},
        {"why": "a sign", "canonical": record((b"chunk_tokens", b"+4"), model)},
        {"why": "not UTF-8", "canonical": record(chunk, (b"model", b"\xc3\x28"))},
        {"why": "overlong UTF-8", "canonical": record(chunk, (b"model", b"\xc0\xaf"))},
        {"why": "a surrogate", "canonical": record(chunk, (b"model", b"\xed\xa0\x80"))},
        {"why": "U+0000", "canonical": record(chunk, (b"model", b"a\0b"))},
        {"why": "empty name", "canonical": record((b"", b"x"), chunk, model)},
        {"why": "= in a name", "canonical": record((b"a=b", b"x"), chunk, model)},
        {"why": "empty known value", "canonical": record(chunk, (b"model", b""))},
        {"why": "two words", "canonical": record(chunk, (b"kv_dtype", b"b f"), model)},
        {"why": "rank without size", "canonical": record(chunk, model, (b"tp_rank", b"0"))},
        {"why": "rank not below size",
         "canonical": record(chunk, model, (b"tp_rank", b"2"), (b"tp_size", b"2"))},
        {"why": "too many fields",
         "canonical": record(*sorted([chunk, model] + [(b"f%02d" % i, b"") for i in range(63)]))},
        {"why": "larger than 3,840 bytes",
         "canonical": record(chunk, (b"model", b"m" * 2048), (b"weights", b"w" * 1746))},
    ]


def document():
    vectors = inputs()
    for vector in vectors:
        keys = [key.hex() for key in evaluate(vector, IDENTITIES)]
        vector["count"] = len(keys)
        if len(keys) <= 8:
            vector["keys"] = keys
        else:
            vector["last_key"] = keys[-1]
    return {
        "specification": "chunking/README.md, version 1",
        "public_domain_key": PUBLIC_KEY.hex(),
        "identities": [{"name": name, "fields": fields, "canonical": canonical(fields).hex(),
                        "fingerprint": fingerprint(fields).hex()}
                       for name, fields in IDENTITIES.items()],
        "refused_records": refused_records(),
        "vectors": vectors,
    }


if __name__ == "__main__":
    json.dump(document(), sys.stdout, indent=1)
    sys.stdout.write("\n")
