"""The folder of the configuration's files."""

from __future__ import annotations

from pathlib import Path

import ntkpipe
from ntkpipe.errors import ConfigError


def config_folder() -> Path:
    """Return the folder `conf/`, which is inside the installed package, or beside it in a checkout."""
    package = Path(ntkpipe.__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if folder.is_dir():
            return folder
    raise ConfigError(f"no conf/ folder beside {package}: reinstall ntkpipe")


def profiles() -> Path:
    """Return the folder of cluster profiles."""
    return config_folder() / "cluster" / "profile"
