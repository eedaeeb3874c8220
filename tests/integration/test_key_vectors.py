"""The test vectors of chunking/, from the independent side, and through the library if it is built."""
import hashlib
import json
import pathlib

import pytest

import keys_reference as reference

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCUMENT = json.loads((ROOT / "chunking" / "vectors.json").read_text())
IDENTITIES = {i["name"]: i["fields"] for i in DOCUMENT["identities"]}


def test_file_is_what_the_reference_writes():
    assert reference.document() == DOCUMENT, (
        "run: python3 tests/integration/keys_reference.py > chunking/vectors.json")


def test_public_key_comes_from_its_name():
    assert DOCUMENT["public_domain_key"] == hashlib.sha256(b"cairn public domain 1").hexdigest()


def test_enough_vectors_and_all_keys_distinct():
    assert len(DOCUMENT["vectors"]) >= 30
    first = {}
    for vector in DOCUMENT["vectors"]:
        for key in vector.get("keys", [vector.get("last_key")])[:1]:
            first.setdefault(key, []).append(vector["name"])
    shared = sorted(names for names in first.values() if len(names) > 1)
    # The chunk a prompt starts with is the same chunk, whatever follows it.
    assert shared == [
        ["exactly one chunk", "one chunk and a tail of one", "two chunks",
         "parent all zero is no parent"],
        ["full chunks of 256", "chunks of 256 and a tail"],
        ["unicode salt", "extras of several chunks"],
    ]


@pytest.mark.parametrize("identity", DOCUMENT["identities"], ids=lambda i: i["name"])
def test_identity(identity):
    canonical = reference.canonical(identity["fields"])
    assert canonical.hex() == identity["canonical"]
    assert hashlib.sha256(canonical).hexdigest() == identity["fingerprint"]


@pytest.mark.parametrize("vector", DOCUMENT["vectors"], ids=lambda v: v["name"])
def test_vector(vector):
    check(vector, reference.evaluate(vector, IDENTITIES))


def check(vector, keys):
    assert len(keys) == vector["count"]
    if "keys" in vector:
        assert [bytes(key).hex() for key in keys] == vector["keys"]
    else:
        assert bytes(keys[-1]).hex() == vector["last_key"]
