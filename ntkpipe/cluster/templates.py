"""Templates of schedulers' files: `{{name}}` stands for a value, quoted for the place where it stands."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import ntkpipe
from ntkpipe.errors import ConfigError

_PLACE = re.compile(r"\{\{(\w+)\}\}")
# What SLURM reads of a script's comments has no quoting to rely on.
_PLAIN = re.compile(r"[\w.,:/@+%=-]+")

TEMPLATES = {
    "slurm": "slurm/ntkpipe.sbatch",
    "ray": "ray/job.yaml",
    "kuberay": "kuberay/rayjob.yaml",
    "cloud": "cloud/cluster.yaml",
}
"""By launcher, below `jobs/`."""


class Raw(str):
    """Shell words that are quoted already."""


def read_template(kind: str) -> str:
    """The text of a launcher's template: inside the installed package, or beside it in a checkout."""
    package = Path(ntkpipe.__file__).resolve().parent
    for folder in (package / "jobs", package.parent / "jobs"):
        if (path := folder / TEMPLATES[kind]).exists():
            return path.read_text(encoding="utf-8")
    raise ConfigError(f"no jobs/{TEMPLATES[kind]} beside {package}: reinstall ntkpipe")


def fill(text: str, values: Mapping[str, object], *, shell: bool) -> str:
    """The template with its values. A line with a value that is None is left out.

    Args:
        text: of the template.
        values: by name: strings, numbers, None; lists and mappings where the file is YAML.
        shell: whether it is a script for bash, or YAML.

    Raises:
        ConfigError: if a value cannot stand where it is wanted.
    """
    lines = []
    for line in text.splitlines():
        names = _PLACE.findall(line)
        if any(values[name] is None for name in names):
            continue
        quote = _yaml if not shell else _directive if line.startswith("#SBATCH") else _word
        lines.append(_PLACE.sub(lambda match, quote=quote: quote(match[1], values[match[1]]), line))
    return "\n".join(lines) + "\n"


def _word(name: str, value: object) -> str:
    """One word of a shell."""
    del name
    return str(value) if isinstance(value, Raw) else shlex.quote(str(value))


def _directive(name: str, value: object) -> str:
    if not _PLAIN.fullmatch(str(value)):
        raise ConfigError(
            f"{name}={value} cannot stand in an #SBATCH line: use letters, digits and . , : / @ + - _ alone"
        )
    return str(value)


def _yaml(name: str, value: object) -> str:
    """JSON is YAML, whatever a string holds."""
    del name
    return json.dumps(value)
