"""Cairn: a store for chunks of attention state (KV), named by what made them.

A hit is exactly the bytes that were put under that key, checked. Any doubt is a miss, counted by
cause in Store.stats().
"""

from .errors import (BusyError, CanceledError, CorruptError, Error, ExistsError, InvalidError,
                     IoError, LockedError, MissError, NoMemoryError, NoSpaceError, NotFoundError,
                     PermissionError, StateError, TimeoutError, TooBigError, UnsupportedError,
                     VersionError)
from .identity import PUBLIC, Identity, Keys, keys, keys_from_hashes
from .queue import Queue
from .store import Lease, Store, features, open, options_help

__version__ = "0.1.0"

__all__ = [
    "BusyError", "CanceledError", "CorruptError", "Error", "ExistsError", "Identity",
    "InvalidError", "IoError", "Keys", "Lease", "LockedError", "MissError", "NoMemoryError",
    "NoSpaceError", "NotFoundError", "PUBLIC", "PermissionError", "Queue", "StateError", "Store",
    "TimeoutError", "TooBigError", "UnsupportedError", "VersionError", "features", "keys",
    "keys_from_hashes", "open", "options_help",
]
