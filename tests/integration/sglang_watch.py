"""What Cairn wraps in SGLang where an engine runs, as if one ran here; unwrapped after the test."""

import functools
import importlib
from types import SimpleNamespace

import pytest
from cairn import _sglang_weights as weights


@pytest.fixture
def watched(monkeypatch):
    """The engine's settings."""
    for name in (*weights.WRITERS, weights.WAKING, weights.FLUSH):
        module, path = name.split(":")
        *outer, last = path.split(".")
        owner = functools.reduce(getattr, outer, importlib.import_module(module))
        monkeypatch.setattr(owner, last, getattr(owner, last))
    monkeypatch.setattr(weights, "_watched", False)
    monkeypatch.setattr(weights, "_changed", False)
    settings = SimpleNamespace(get=lambda name: None)
    monkeypatch.setattr(weights, "Settings", lambda: settings)
    return settings
