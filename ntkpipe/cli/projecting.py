"""`ntkpipe plan` for several sizes and other machines: the command's own settings and its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ntkpipe.cli.arguments import number, numbers
from ntkpipe.config import COMBINED, RunConfig
from ntkpipe.errors import ConfigError
from ntkpipe.planning.machine import FIGURES, load_profile
from ntkpipe.planning.shapes import Shapes
from ntkpipe.planning.surroundings import on_profile, plan_here
from ntkpipe.planning.text import compare_ways, describe_origins, describe_stages
from ntkpipe.storage.store import ObjectStore


def lines(
    config: RunConfig,
    shapes: Shapes,
    store: ObjectStore,
    siblings: Sequence[RunConfig],
    own: Mapping[str, str | None],
    folder: Path,
) -> list[str]:
    """Return the plan of a run as lines, for this machine, or for a profile's machines if one is named.

    Args:
        config: configuration of the run.
        shapes: shapes of the data.
        store: store, which may hold a calibration.
        siblings: configurations of other depths.
        own: the command's own settings; see `commands`.
        folder: folder of profiles.

    Raises:
        ConfigError: if a profile, size or figure is invalid.
    """
    name = own["cluster.profile"] or own["cluster/profile"]
    figures = {key: number(f"profile.{key}", own[f"profile.{key}"]) for key in FIGURES if own[f"profile.{key}"]}
    sizes = _sizes(own["plan.sizes"])
    passes = None if (text := own["plan.passes"]) is None else _count("plan.passes", number("plan.passes", text), text)
    if name is None and (figures or sizes):
        raise ConfigError("plan.sizes and profile.* need a machine: cluster.profile=NAME, or a file of your own")
    here = plan_here(config, shapes, store, siblings, passes=passes)
    told = own["plan.figures"] == "true"
    if name is None:
        return [str(here), *(here.machine.origins() if told else [])]
    if config.kernel.kind in ("empirical", *COMBINED):
        raise ConfigError("plans for a profile's machines cover infinite networks only: leave cluster.profile out")
    machine = load_profile(name, folder).overridden(figures)
    printed: list[str] = []
    for n in sizes or [shapes.used_train]:
        ways = [on_profile(config, shapes, machine, n, stored=stored, passes=passes) for stored in (True, False)]
        chosen = ways[config.store.gram == "recompute"]
        if config.store.gram == "auto":
            chosen = min(ways, key=lambda way: way.seconds)
        printed += [describe_stages(chosen), describe_origins(chosen), compare_ways(*ways), ""]
    printed.append(
        "these figures rest on measurements of one H200 GPU and of no cluster: plan.figures=true lists every figure "
        "with its origin, profile.NAME=NUMBER overrides one"
    )
    return [*printed, *(machine.origins() if told else [])]


def _sizes(text: str | None) -> list[int]:
    if text is None:
        return []
    try:
        found = numbers("plan.sizes", text)
    except ConfigError:
        found = ()
    if not found:
        raise ConfigError(f"plan.sizes={text} must be a list of numbers, such as [50000,1000000]")
    return [_count("plan.sizes", one, text) for one in found]


def _count(name: str, value: float, text: str) -> int:
    if value < 1 or value != int(value):
        raise ConfigError(f"{name}={text} must be a whole number above 0")
    return int(value)
