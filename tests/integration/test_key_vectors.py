"""The test vectors of chunking/, by the independent side and through the library
if it is built."""
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


def test_examples_of_the_specification():
    text = (ROOT / "chunking" / "README.md").read_text()
    small = next(i for i in DOCUMENT["identities"] if i["name"] == "small")
    one_token = next(v for v in DOCUMENT["vectors"] if v["name"] == "one token")
    for example in (small["fingerprint"], one_token["keys"][0], DOCUMENT["public_domain_key"]):
        assert example in text
    assert small["canonical"] in text.replace(" ", "")
    for name in (*reference.TEXT, *reference.WORD, *reference.NUMBER):
        assert f"`{name}`" in text


@pytest.fixture(scope="module")
def cairn():
    package = pytest.importorskip("cairn", reason="the Python package is not installed")
    try:
        package.Identity(model="m", chunk_tokens=1)
    except package.NotFoundError as e:
        pytest.skip(str(e))
    return package


@pytest.mark.parametrize("vector", DOCUMENT["vectors"], ids=lambda v: v["name"])
def test_library(cairn, vector):
    fields = IDENTITIES[vector["identity"]]
    identity = cairn.Identity(**{**fields, "chunk_tokens": int(fields["chunk_tokens"])})
    assert identity.canonical == reference.canonical(fields)
    assert identity.fingerprint == reference.fingerprint(fields)
    domain = cairn.PUBLIC
    if "key" in vector["domain"]:
        domain = reference.expand_bytes(vector["domain"]["key"])
    extras = {}
    for extra in vector["extras"]:
        extras.setdefault(extra["chunk"], []).append(reference.expand_bytes(extra["data"]))
    how = {"domain": domain, "extras": extras,
           "parent": bytes.fromhex(vector["parent"]) if vector["parent"] else None}
    if "hashes" in vector:
        hashes = [bytes.fromhex(h) for h in vector["hashes"]]
        check(vector, cairn.keys_from_hashes(identity, hashes, **how))
    else:
        check(vector, cairn.keys(identity, reference.expand_tokens(vector["tokens"]), **how))


def check(vector, keys):
    assert len(keys) == vector["count"]
    if "keys" in vector:
        assert [bytes(key).hex() for key in keys] == vector["keys"]
    else:
        assert bytes(keys[-1]).hex() == vector["last_key"]
