"""Exceptions worth catching. Each also inherits a builtin and carries the exit code of the command line."""

from __future__ import annotations


class NtkpipeError(Exception):
    """Base of every error that ntkpipe raises on purpose; its text gives the remedy."""

    exit_code = 1


class ConfigError(NtkpipeError, ValueError):
    """A setting is misspelt, impossible or contradicts another."""

    exit_code = 2


class MissingExtraError(ConfigError, ImportError):
    """Something that needs an optional package, which is not installed; the text has the command that installs it."""


class DataError(NtkpipeError, ValueError):
    """Unusable images or labels: missing, malformed, not finite, out of range."""

    exit_code = 3


class IncompleteError(NtkpipeError, RuntimeError):
    """A required result is not computed yet; the text names it and the command that computes it."""

    exit_code = 4


class HeldError(NtkpipeError, RuntimeError):
    """Another living run holds the store or the run directory; the text names the holder."""

    exit_code = 5


class StoreError(NtkpipeError, OSError):
    """A stored object is missing, unreadable or inconsistent."""

    exit_code = 6


class CorruptionError(StoreError):
    """Stored bytes disagree with their checksum or receipt; the text names the object."""


class IdentityError(StoreError):
    """A store was made for other data, another kernel or precision; the text names the field that differs."""


class NumericalError(NtkpipeError, ArithmeticError):
    """Arithmetic cannot continue: an indefinite matrix, a diverging time, non-finite values."""

    exit_code = 7


class ResourceError(NtkpipeError, RuntimeError):
    """The plan does not fit: memory per worker, disk, or a device that lacks the dtype."""

    exit_code = 8


class ReportError(NtkpipeError, RuntimeError):
    """Figures or a page could not be drawn. The results are finished and stored, and the report can be drawn again."""

    exit_code = 9


class RequeueError(NtkpipeError, RuntimeError):
    """The run was stopped or lost its cluster in an orderly way; the same command continues from here."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h
