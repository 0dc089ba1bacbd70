"""Exceptions worth catching. Each also inherits a builtin and carries the exit code of the command line."""

from __future__ import annotations


class NtkpipeError(Exception):
    """Base of every error that ntkpipe raises on purpose; its text says what to do."""

    exit_code = 1


class ConfigError(NtkpipeError, ValueError):
    """A setting that is misspelt, impossible or contradicts another."""

    exit_code = 2


class DataError(NtkpipeError, ValueError):
    """Images or labels that cannot be used: missing, malformed, not finite, out of range."""

    exit_code = 3


class IncompleteError(NtkpipeError, RuntimeError):
    """Something needed is not computed yet; the text names it and the command that computes it."""

    exit_code = 4


class HeldError(NtkpipeError, RuntimeError):
    """Another living run holds the store or the run directory; the text says who."""

    exit_code = 5


class StoreError(NtkpipeError, OSError):
    """A stored object is missing, unreadable or not what it claims to be."""

    exit_code = 6


class CorruptionError(StoreError):
    """Stored bytes that disagree with their checksum or receipt; the text names the object."""


class IdentityError(StoreError):
    """A store made for other data, another kernel or precision; the text names the field that differs."""


class NumericalError(NtkpipeError, ArithmeticError):
    """Arithmetic that cannot go on: an indefinite matrix, a diverging time, non-finite values."""

    exit_code = 7


class ResourceError(NtkpipeError, RuntimeError):
    """The plan does not fit: memory per worker, disk, or a device that lacks the dtype."""

    exit_code = 8


class ReportError(NtkpipeError, RuntimeError):
    """Figures or a page that could not be made; what they show is finished and stored, and they can be made again."""

    exit_code = 9


class RequeueError(NtkpipeError, RuntimeError):
    """The run was told to stop, or lost its cluster, in good order: the same command started again goes on from here."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h
