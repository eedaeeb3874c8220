"""A store behind a node (`cairn.open("tcp://...")`) whose connection ends between a command and its
answer: what changes something is done once, and others' work in between is not undone."""

import select
import socket
import threading

import pytest

import cairn
from kv_client import Kv, key_of, value_of

pytestmark = pytest.mark.timeout(120)
LENGTH = 50_000


class Relay:
    """Passes bytes on to the node's port. `arm`: the next command of that name reaches the node;
    instead of its answer somebody else does `then()`, and the connection is closed."""

    def __init__(self, port):
        self.to, self.word, self.then = port, None, None
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.swallowed = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, word: bytes, then):
        self.word, self.then = word, then

    def _accept(self):
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client):
        armed = False
        with client, socket.create_connection(("127.0.0.1", self.to)) as node:
            while True:
                for side in select.select([client, node], [], [])[0]:
                    try:
                        data = side.recv(1 << 16)
                    except OSError:
                        data = b""
                    if not data:
                        return
                    if side is client:
                        armed = armed or (self.word is not None and self.word in data)
                        node.sendall(data)
                    elif armed:
                        self.word, then = None, self.then
                        then()
                        self.swallowed += 1
                        return
                    else:
                        client.sendall(data)

    def close(self):
        self.server.close()


@pytest.fixture
def relay(node):
    relay = Relay(node.port)
    yield relay
    relay.close()


@pytest.fixture
def store(relay):
    with cairn.open(f"tcp://127.0.0.1:{relay.port}") as opened:
        yield opened


@pytest.fixture
def other(node):
    with Kv(node.port) as client:
        yield client


def values(key):
    """The same key's bytes at three times."""
    return [value_of(key, LENGTH, i) for i in range(3)]


def lost(store, relay):
    """One answer got lost, and is known to be."""
    return relay.swallowed == 1 and store.stats()["client"]["unknown"] == 1


def test_a_delete_is_done_once(store, relay, other):
    key = key_of("once", "delete")
    old, new, _ = values(key)
    assert store.put([key], [old]) == [True]
    relay.arm(b"CAIRN.DELETE", lambda: other.put(key, new))
    with pytest.raises(cairn.Error):
        store.delete([key])
    assert lost(store, relay)
    assert other.fetch(key, LENGTH) == new, "the second put came after the delete, and was undone"


def test_a_replacement_is_done_once(store, relay, other):
    key = key_of("once", "replace")
    old, mine, last = values(key)
    assert store.put([key], [old]) == [True]
    relay.arm(b"CAIRN.PUT", lambda: other.put(key, last, replace=True))
    assert store.put([key], [mine], replace=True) == [False]
    assert lost(store, relay)
    assert other.fetch(key, LENGTH) == last, "an older value replaced a newer one"


def test_what_was_deleted_is_not_put_again(store, relay, other):
    key = key_of("once", "put")
    relay.arm(b"CAIRN.PUT", lambda: other.call("CAIRN.DELETE", 1000, key))
    assert store.put([key], [values(key)[0]]) == [False]
    assert lost(store, relay)
    assert other.fetch(key, LENGTH) is None, "a deleted value came back"


def test_the_rest_of_a_batch_goes_on(store, relay, other):
    """More deletes than a command takes: those that were not sent yet are sent again."""
    keys = [key_of("rest", i) for i in range(10_000)]
    for key in keys[:3] + keys[-3:]:
        assert other.put(key, value_of(key, LENGTH)) == [0, 0]
    relay.arm(b"CAIRN.DELETE", lambda: None)
    with pytest.raises(cairn.Error):
        store.delete(keys)
    assert relay.swallowed == 1 and 0 < store.stats()["client"]["unknown"] < len(keys)
    for key in keys[-3:]:
        assert other.fetch(key, LENGTH) is None, "of these the answer came"


def test_reading_goes_on_over_another_connection(store, relay, other):
    key = key_of("once", "get")
    value, out = values(key)[0], bytearray(LENGTH)
    assert other.put(key, value) == [0, 0]
    relay.arm(b"CAIRN.GET", lambda: None)
    assert store.get([key], [out]) == [True] and bytes(out) == value
    assert relay.swallowed == 1 and store.stats()["client"]["unknown"] == 0


def test_a_node_that_was_restarted_costs_no_put_and_no_delete(store, relay, node, other):
    key = key_of("restart")
    assert store.put([key], [values(key)[0]]) == [True]
    node.stop()
    node.start()
    assert store.put([key], [values(key)[1]]) == [True]
    assert store.delete([key]) == [True]
    assert store.stats()["client"]["unknown"] == 0


def test_a_flush_is_no_word_of_a_node_that_has_ended(new_node):
    node = new_node()
    options = ["--ram=64MiB", "--disk=512MiB", f"--disk-path={node.place}"]
    key, value = key_of("flush"), value_of(key_of("flush"), LENGTH, 0)

    def another_life():
        node.kill()
        node.start(*options)

    node.start(*options)
    with cairn.open(f"tcp://127.0.0.1:{node.port}") as store:
        assert store.put([key], [value]) == [True]
        store.flush()
        another_life()
        assert store.get([key], [bytearray(LENGTH)]) == [True]
        store.flush()  # all that was put was flushed before
        assert store.put([key_of("more")], [value]) == [True]
        another_life()
        with pytest.raises(cairn.IoError):
            store.flush()
        store.flush()  # it was said once
        assert store.put([key_of("first life")], [value]) == [True]
        another_life()
        assert store.put([key_of("second life")], [value]) == [True]
        with pytest.raises(cairn.IoError):
            store.flush()
