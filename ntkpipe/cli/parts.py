"""`kernel.parts` on a command line: a part may be the name of a family, a file of layers or the folder of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ntkpipe.cli.folder import config_folder
from ntkpipe.config import COMBINED, to_dict
from ntkpipe.errors import ConfigError
from ntkpipe.gram.from_config import kernel_takes
from ntkpipe.run.run_dir import RunDir

_LAYERS = (".yaml", ".yml", ".json")


def expanded(parts: Any, name: str = "kernel.parts") -> Any:
    """Return the parts as mappings, each completed by the defaults of its family.

    A value that is not a list is returned unchanged.

    Args:
        parts: parts as the user gave them.
        name: name of the setting, for messages.

    Raises:
        ConfigError: if a part has no known form.
    """
    if not isinstance(parts, (list, tuple)):
        return parts
    return [_expanded(part, f"{name}[{k}]") for k, part in enumerate(parts)]


def _expanded(part: Any, name: str) -> Any:
    if isinstance(part, str):
        return _named(part, name)
    if not isinstance(part, dict) or not isinstance(part.get("kind"), str):
        return part  # a later check of all parts refuses it
    made = {**_family(part["kind"]), **part}
    if isinstance(made.get("path"), str):
        made["path"] = os.path.abspath(os.path.expanduser(made["path"]))
    return (
        made | {"parts": expanded(made["parts"], f"{name}.parts")}
        if part["kind"] in COMBINED and "parts" in made
        else made
    )


def _named(text: str, name: str) -> dict[str, Any]:
    path = Path(text).expanduser()
    if (config_folder() / "kernel" / f"{text}.yaml").is_file():
        return _family(text)
    if (path / "run.json").is_file():
        kernel = to_dict(RunDir.open(path).config)["kernel"]
        return {key: value for key, value in kernel.items() if key in kernel_takes(kernel["kind"]) and value != []}
    if path.suffix in _LAYERS:
        return {"kind": "spec", "path": os.path.abspath(path)}
    raise ConfigError(
        f"{name}={text} is not a family of networks, a run's folder or a file of layers (*.yaml, *.json): give the "
        "family's name, or {kind:fcn,depth:3}"
    )


def _family(kind: str) -> dict[str, Any]:
    file = config_folder() / "kernel" / f"{kind}.yaml"
    loaded = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {"kind": kind}
    assert isinstance(loaded, dict)
    return {str(key): value for key, value in loaded.items()}
