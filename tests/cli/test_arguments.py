from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkpipe.cli.arguments import flags_first, swept, truth, whole
from ntkpipe.cli.arguments import settings as parse
from ntkpipe.errors import ConfigError

OVERRIDES = ["kernel.depth=1,3", "~kernel", "+experiment=x", "run_dir=a b", "predict.times=[1,inf]"]
FLAGS = [["--multirun"], ["-m"], ["--cfg", "job"], ["--config-dir", "folder"], ["--info", "config"], ["--resolve"]]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from([*([o] for o in OVERRIDES), *FLAGS]), max_size=8), st.randoms())
def test_flags_move_before_overrides_with_their_values(groups, random):
    random.shuffle(groups)
    words = list(itertools.chain(*groups))
    moved = flags_first(words)
    assert sorted(moved) == sorted(words)
    flags = [g for g in groups if g[0].startswith("-")]
    assert moved == [*itertools.chain(*flags), *(g[0] for g in groups if not g[0].startswith("-"))]


def test_an_optional_topic_is_not_an_override():
    assert flags_first(["--info", "kernel.depth=3"]) == ["--info", "kernel.depth=3"]
    assert flags_first(["a=1", "--info", "b=2"]) == ["--info", "a=1", "b=2"]


def test_what_varies():
    words = ["--multirun", "kernel.depth=1,3", "data=digits", "predict.times=[1,inf]", "solver.tolerance=choice(1,2)"]
    assert swept(words) == {"kernel.depth", "solver.tolerance"}


def test_settings_of_stored_commands():
    known = {"run_dir": None, "format": "parquet"}
    assert parse(["run_dir=a=b"], known, "export") == {"run_dir": "a=b", "format": "parquet"}
    with pytest.raises(ConfigError, match=r"no setting 'formt'; it has run_dir, format"):
        parse(["formt=csv"], known, "export")
    with pytest.raises(ConfigError, match="key=value"):
        parse(["runs/a"], known, "export")
    assert truth("repair", "true")
    assert not truth("repair", "no")
    assert whole("tiles", "2**10") == whole("tiles", "1024.0") == 1024
    with pytest.raises(ConfigError, match="tiles=-1 must be a whole number, at least 0"):
        whole("tiles", "-1")
    with pytest.raises(ConfigError, match="must be true or false"):
        truth("repair", "perhaps")
