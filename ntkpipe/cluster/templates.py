"""Fills in the templates of job files: `{{name}}` is replaced by a value that is quoted for its context."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import ntkpipe
from ntkpipe.errors import ConfigError

_PLACE = re.compile(r"\{\{(\w+)\}\}")
# There is no reliable quoting in directives of SLURM, which are comments.
_PLAIN = re.compile(r"[\w.,:/@+%=-]+")

TEMPLATES = {
    "slurm": "slurm/ntkpipe.sbatch",
    "ray": "ray/job.yaml",
    "kuberay": "kuberay/rayjob.yaml",
    "cloud": "cloud/cluster.yaml",
}
"""The template of each launcher, relative to `jobs/`."""


class Raw(str):
    """Shell words that are already quoted."""


def read_template(kind: str) -> str:
    """The text of a launcher's template: inside the installed package, or beside it in a checkout."""
    package = Path(ntkpipe.__file__).resolve().parent
    for folder in (package / "jobs", package.parent / "jobs"):
        if (path := folder / TEMPLATES[kind]).exists():
            return path.read_text(encoding="utf-8")
    raise ConfigError(f"no jobs/{TEMPLATES[kind]} beside {package}: reinstall ntkpipe")


def fill(text: str, values: Mapping[str, object], *, shell: bool) -> str:
    """Fill in a template. Lines with a value that is None are left out.

    Args:
        text: text of the template.
        values: values by name: strings, numbers or None; for YAML also lists and mappings.
        shell: whether the file is a bash script; otherwise it is YAML.

    Raises:
        ConfigError: if a value is not allowed at its place.
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
    """The value as one shell word."""
    del name
    return str(value) if isinstance(value, Raw) else shlex.quote(str(value))


def _directive(name: str, value: object) -> str:
    """The value in an #SBATCH line."""
    if not _PLAIN.fullmatch(str(value)):
        raise ConfigError(
            f"{name}={value} is not allowed in an #SBATCH line: use only letters, digits and . , : / @ + - _"
        )
    return str(value)


def _yaml(name: str, value: object) -> str:
    """The value as YAML, of which JSON is a subset."""
    del name
    return json.dumps(value)
