"""Optional packages: which extra of ntkpipe brings which, and the error for one that is not installed."""

from __future__ import annotations

import importlib.util

from ntkpipe.errors import MissingExtraError

EXTRAS = {
    "matplotlib": "report",
    "pandas": "tables",
    "pyarrow": "tables",
    "xarray": "tables",
    "PIL": "images",
    "sklearn": "sklearn",
    "obstore": "cloud",
    "opencensus": "cluster",
    "numba": "fast",
    "optuna": "tune",
}
"""The extra that brings each module; `pyproject.toml` has the packages and their versions."""

_PACKAGES = {"PIL": "Pillow", "sklearn": "scikit-learn", "optuna": "Optuna"}


def is_installed(module: str) -> bool:
    """Whether a module can be imported; nothing is."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a finder that refuses it, a module that was put in its place
        return False


def require(module: str, what: str, otherwise: str = "") -> None:
    """Refuse what needs a package that is not installed.

    Args:
        module: one of `EXTRAS`.
        what: needs it: a setting, a function or a class.
        otherwise: what works without it, as a sentence without a full stop.

    Raises:
        MissingExtraError: with the command that installs it.
    """
    if not is_installed(module):
        end = f". {otherwise}" if otherwise else ""
        package = _PACKAGES.get(module, module)
        raise MissingExtraError(f"{what} needs {package}, which is not installed: {install(EXTRAS[module])}{end}")


def install(extra: str) -> str:
    """The command that installs an extra."""
    return f'pip install "ntkpipe[{extra}]"'
