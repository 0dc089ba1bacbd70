"""Where results go when nobody says: a folder named after the data and the kernel, and the settings' digest; and jobs of sweeps."""

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
    """`runs/<experiment or data>-<kernel>-<key>`: the same for the same settings, wherever tasks run and whoever watches.

    Other times or ridges are other settings: a folder of their own, which costs no tile and no decomposition, as these lie in the
    store.

    Args:
        config: of the run.
        experiment: its name, if one was chosen.
    """
    settings, defaults = to_dict(anchored(config)), to_dict(RunConfig())
    # What differs from the defaults alone: settings that a later version adds change no key.
    told = {
        group: {k: v for k, v in value.items() if v != defaults[group][k]} if isinstance(value, dict) else value
        for group, value in settings.items()
        if group not in FREE_SETTINGS and value != defaults[group]
    }
    path = config.data.path
    data = config.data.kind if path is None else Path(path).name.partition(".")[0] or config.data.kind
    return f"./{_PARENT}/{_plain(experiment or data)}-{config.kernel.kind}-{digest(told)[:8]}"


def sweep_folder(words: Sequence[str]) -> str:
    """The folder of a sweep: `runs/<experiment or data>-sweep-<key of its words>`.

    Args:
        words: of the command line, without flags.
    """
    given = dict(word.split("=", 1) for word in words if "=" in word)
    label = given.get("experiment") or Path(given.get("data.path", "")).name.partition(".")[0] or given.get("data")
    return f"./{_PARENT}/{_plain(label or 'digits')}-sweep-{digest(sorted(words))[:8]}"


def is_own(run_dir: str) -> bool:
    """Whether nobody said where results go."""
    return run_dir == OWN_RUN_DIR


def job_folder(overrides: Sequence[str]) -> str:
    """A folder's name for a job of a sweep: what varies, in letters, digits and `. _ - =`, and no other job's.

    `kernel.depth=3` is `depth=3`, unless another setting that varies ends alike; a list of numbers, `[1,inf]`, is `1_inf`. Where
    more is lost than that, a digest of the words follows.

    Args:
        overrides: those that vary, as they were typed.
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
    """Text that may be typed in any shell: other characters are dashes."""
    return re.sub(r"[^A-Za-z0-9._+]+", "-", text).strip("-.") or "x"
