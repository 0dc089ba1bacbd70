"""Finds the settings that the user gave, on the command line or in a file outside this program's own groups."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from ntkpipe.cli.folder import config_folder
from ntkpipe.run.meanings import settings


def job_words() -> list[str]:
    """Return the words of the current job as the user typed them; a job of a sweep has its own values."""
    words = OmegaConf.to_container(HydraConfig.get().overrides.task)  # `${...}` is not replaced
    assert isinstance(words, list)
    return [str(word) for word in words]


def find_given_settings(composed: DictConfig) -> set[str]:
    """Return the dotted names of the settings that the words and files of the current job give.

    The schema has no defaults, so every value comes from a word or a file. Values from this program's own groups
    (`conf/kernel/fcn.yaml`) do not count, unless a word gives them too.

    Args:
        composed: the composed configuration of this job.
    """
    state = HydraConfig.get()
    words = [word for word in job_words() if not word.startswith("~")]
    named = {str(one.key_or_group).replace("/", ".") for one in OverridesParser.create().parse_overrides(words)}
    named |= {f"{group}.kind" for group in named}  # the choice of a group sets its kind
    ours = {name for group, choice in state.runtime.choices.items() for name in _of_group(str(group), choice)}
    known = set(settings())
    spoken = {name for name in known if any(f"{word}.".startswith(f"{name}.") for word in named)}
    return spoken | {name for name in known - ours if _is_given(composed, name)}


def _is_given(composed: DictConfig, setting: str) -> bool:
    group, _, name = setting.rpartition(".")
    parent = reduce(lambda node, key: node[key], group.split("."), composed) if group else composed
    if name not in parent.keys() or OmegaConf.is_missing(parent, name):  # noqa: SIM118  (`in` looks for values)
        return False
    value = parent._get_node(name)  # the value itself, not what it refers to
    return not (isinstance(value, DictConfig) and not value)  # mappings have no value for `unset`


def _of_group(group: str, choice: str | None) -> Iterator[str]:
    """Yield the settings that a file of `conf/` sets; none for an experiment, which counts as given by the user."""
    file = config_folder() / group / f"{choice}.yaml"
    if group != "experiment" and file.is_file():
        for name in OmegaConf.load(file):
            yield f"{group.replace('/', '.')}.{name}"
