"""Default folders of results, named after the data, the kernel and a digest of the settings, and folders of sweeps."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ntkpipe.config import RunConfig, to_dict
from ntkpipe.config.run import OWN_RUN_DIR
from ntkpipe.run.places import anchored
from ntkpipe.run.run_dir import FREE_SETTINGS
from ntkpipe.storage.checksum import digest

_PARENT = "runs"
_LONGEST = 120  # bytes of a folder's name; file systems allow 255


def own_folder(config: RunConfig, experiment: str | None) -> str:
    """Return the default folder of a run, `runs/<experiment or data>-<kernel>-<key>`.

    Equal settings give the same folder, whatever the cluster and the watchers. Other times or ridges give another
    folder, but tiles and decompositions are in the store and are reused.

    Args:
        config: configuration of the run.
        experiment: name of the chosen experiment, if any.
    """
    settings, defaults = to_dict(anchored(config)), to_dict(RunConfig())
    # Use only settings that differ from the defaults, so that settings of later versions do not change the key.
    told = {
        group: {k: v for k, v in value.items() if v != defaults[group][k]} if isinstance(value, dict) else value
        for group, value in settings.items()
        if group not in FREE_SETTINGS and value != defaults[group]
    }
    path = config.data.path
    data = config.data.kind if path is None else Path(path).name.partition(".")[0] or config.data.kind
    return f"./{_PARENT}/{_plain(experiment or data)}-{config.kernel.kind}-{digest(told)[:8]}"


def sweep_folder(words: Sequence[str]) -> str:
    """Return the default folder of a sweep, `runs/<experiment or data>-sweep-<key of its words>`.

    Args:
        words: words of the command line, without flags.
    """
    given = dict(word.split("=", 1) for word in words if "=" in word)
    label = given.get("experiment") or Path(given.get("data.path", "")).name.partition(".")[0] or given.get("data")
    return f"./{_PARENT}/{_plain(label or 'digits')}-sweep-{digest(sorted(words))[:8]}"


def is_own(run_dir: str) -> bool:
    """Return whether the user gave no folder for the results."""
    return run_dir == OWN_RUN_DIR


def job_folder(overrides: Sequence[str]) -> str:
    """Return a unique folder name for a job of a sweep: the settings that vary, in letters, digits and `. _ - =`.

    `kernel.depth=3` becomes `depth=3`, unless another varying setting has the same last part. A list of numbers
    `[1,inf]` becomes `1_inf`. If other characters are replaced, a digest of the words follows.

    Args:
        overrides: overrides that vary, as the user typed them.
    """
    pairs = [override.lstrip("+").partition("=")[::2] for override in overrides]
    ends = Counter(key.rpartition(".")[2] for key, _ in pairs)
    parts, exact = [], True
    for key, value in pairs:
        end = key.rpartition(".")[2]
        text = value[1:-1].replace(",", "_") if re.fullmatch(r"\[[\d.e+,inf -]*\]", value) else value
        plain = _plain(text.replace(" ", ""))
        exact &= plain == text.replace(" ", "") and text != ""
        parts.append(f"{_plain(end if ends[end] == 1 else key)}={plain}")
    name = "-".join(parts) or "job"
    if not exact or len(pairs) != len(overrides) or len(name) > _LONGEST:
        name = f"{name[:80].rstrip('-')}-{digest(list(overrides))[:8]}"
    return name


def _plain(text: str) -> str:
    """Return the text with dashes in place of all characters that a shell may interpret."""
    return re.sub(r"[^A-Za-z0-9._+]+", "-", text).strip("-.") or "x"
