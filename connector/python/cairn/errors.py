"""One exception a status of the C library, and one of the engines' plug-ins."""

from __future__ import annotations

import builtins


class Error(Exception):
    """Base of all errors of this package. `status` is the C library's number."""

    status: int = 0


class MissError(Error):
    status = -1


class ExistsError(Error):
    status = -2


class BusyError(Error):
    """A bounded queue is full: nothing was kept."""

    status = -3


class TimeoutError(Error, builtins.TimeoutError):
    """The deadline passed first."""

    status = -4


class CanceledError(Error):
    status = -5


class NoMemoryError(Error, MemoryError):
    status = -10


class NoSpaceError(Error):
    """No room without dropping what is pinned or not written."""

    status = -11


class TooBigError(Error, ValueError):
    """Larger than the largest value the store takes."""

    status = -12


class CorruptError(Error):
    status = -20


class VersionError(Error):
    """Another format version, or another machine's page size."""

    status = -21


class IoError(Error, OSError):
    status = -30


class UnsupportedError(Error):
    status = -31


class PermissionError(Error, builtins.PermissionError):
    status = -32


class LockedError(Error):
    """Another process has the store open."""

    status = -33


class NotFoundError(Error, FileNotFoundError):
    """A path or a name does not exist."""

    status = -34


class InvalidError(Error, ValueError):
    """A bad argument or option."""

    status = -40


class StateError(Error):
    """Closed, or used in a child after fork."""

    status = -41


class Unsupported(Exception):
    """An engine, or a part of it, goes on without the cache; the text says why."""


BY_STATUS: dict[int, type[Error]] = {c.status: c for c in Error.__subclasses__()}


def error(status: int, text: str) -> Error:
    """The exception for a status; an unknown one is still an Error."""
    made = BY_STATUS.get(status, Error)(text)
    made.status = status
    return made
