"""Where the built things are, and a directory on a real file system for each test."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def pytest_configure(config):
    config.addinivalue_line("markers", "timeout(seconds): a test that takes longer has failed")


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def programs() -> Path:
    """Test programs built by tests/run."""
    path = Path(os.environ.get("CAIRN_TEST_BIN", ROOT / "build/test/bin"))
    assert path.is_dir(), f"{path} is missing: run tests/run unit first"
    return path


@pytest.fixture
def place():
    """A directory under build/: O_DIRECT works there, which /tmp does not promise."""
    base = ROOT / "build" / "scratch"
    base.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(dir=base))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def full() -> bool:
    """tests/run --full"""
    return bool(os.environ.get("CAIRN_TEST_FULL"))
