"""Every setting with values of every wrong kind: taken where they can be meant, refused in the words of the setting otherwise."""

from __future__ import annotations

import dataclasses
import math
import typing

import pytest

from ntkpipe.config import DataConfig, KernelConfig, PredictConfig, RunConfig, SolverConfig, from_dict
from ntkpipe.errors import ConfigError


def leaves(cls: type, prefix: str = ""):
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from leaves(typing.cast("type", hint), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def nested(path: str, value: object) -> dict:
    for name in reversed(path.split(".")):
        value = {name: value}
    return typing.cast("dict", value)


@pytest.mark.parametrize(
    ("setting", "given", "taken"),
    [
        ("predict.ridges", 1e-4, (1e-4,)),
        ("predict.kernels", "ntk", ("ntk",)),
        ("predict.times", 10, (10.0,)),
        ("predict.times", "inf", (math.inf,)),
        ("predict.times", [1, ".inf"], (1.0, math.inf)),
        ("predict.times", ["1e2", "Inf"], (100.0, math.inf)),
        ("predict.times", ["infinity"], (math.inf,)),
        ("predict.times", [1, "+.INF"], (1.0, math.inf)),
        ("predict.times", "None", None),
        ("predict.train_sizes", [1e2, "200"], (100, 200)),
        ("data.train_size", 1e3, 1000),
        ("data.train_size", "1e3", 1000),
        ("data.train_size", "None", None),
        ("data.download", "yes", True),
        ("data.download", 0, False),
        ("kernel.b_std", "None", None),
        ("kernel.b_std", "null", None),
        ("kernel.w_std", "1.5", 1.5),
        ("kernel.w_std", 2, 2.0),
        ("kernel.w_std", "sqrt(2)", 2**0.5),
        ("kernel.w_std", "2**0.5", 2**0.5),
        ("kernel.w_std", "pi/2", math.pi / 2),
        ("kernel.depth", "2*3", 6),
        ("data.train_size", "10**3", 1000),
        ("predict.ridges", ["1e-3/2", 0], (5e-4, 0.0)),
        ("predict.ridges", "[0, 2**-3]", (0.0, 0.125)),
        ("kernel.activation_args", {"alpha": 0.1}, {"alpha": 0.1}),
        ("run_dir", 7, "7"),
        ("cluster.resources", {"a": "2"}, {"a": 2.0}),
    ],
)
def test_what_can_be_meant_is_taken(setting, given, taken):
    found: object = from_dict(RunConfig, nested(setting, given))
    for name in setting.split("."):
        found = getattr(found, name)
    assert found == taken
    assert type(found) is type(taken)


@pytest.mark.parametrize(
    ("setting", "given", "text"),
    [
        (
            "data.train_size",
            1.5,
            "data.train_size=1.5 must be a whole number, or null for none, such as data.train_size=100",
        ),
        ("data.train_size", math.inf, "data.train_size=inf must be a whole number"),
        ("data.train_size", True, "data.train_size=true must be a whole number"),
        ("kernel.w_std", "wide", "kernel.w_std=wide must be a number, such as kernel.w_std=1.41"),
        ("kernel.w_std", None, "kernel.w_std=null must be a number"),
        ("kernel.w_std", "sqrt(-1)", r"kernel.w_std=sqrt\(-1\) must be a number"),
        ("kernel.w_std", "(-2)**0.5", "must be a number"),
        ("kernel.w_std", "9**9**9", "must be a number"),
        ("kernel.w_std", "1/0", "must be a number"),
        ("kernel.w_std", "__import__('os')", "must be a number"),
        ("kernel.w_std", "True+1", "must be a number"),
        ("kernel.w_std", "-" * 100_000 + "1", "must be a number"),
        ("kernel.depth", "7/2", "kernel.depth=7/2 must be a whole number"),
        ("predict.times", ["a", 1], r"predict.times=\[a,1\] must be a list of numbers, or null for none, such as"),
        ("predict.times", [1, math.nan], r"predict.times=\[1,nan\] must be a list of numbers"),
        ("predict.ridges", None, r"predict.ridges=null must be a list of numbers, such as predict.ridges=\[0.0\]"),
        ("predict.ridges", {"a": 1}, r"predict.ridges={a:1} must be a list of numbers"),
        ("data.download", "perhaps", "data.download=perhaps must be true or false, such as data.download=false"),
        ("run_dir", [1], r"run_dir=\[1\] must be text, such as run_dir=./runs/{name}"),
        ("cluster.resources", 3, "cluster.resources=3 must be a mapping of names to numbers, such as"),
        ("cluster.resources", {"a": "b"}, "cluster.resources={a:b} must be a mapping of names to numbers"),
        ("predict", 3, "predict=3 is a group of settings: set one of predict.kernels, predict.times"),
    ],
)
def test_what_cannot_is_refused_by_its_name_with_an_example(setting, given, text):
    with pytest.raises(ConfigError, match=text):
        from_dict(RunConfig, nested(setting, given))


@pytest.mark.parametrize("given", ["word", 3, -1.5, True, [], ["a"], [1, 2], {"a": 1}, None, math.nan, math.inf, "[1"])
def test_every_setting_is_taken_or_named(given):
    """No value of any kind leads to another error than one that begins with a setting's name."""
    names = list(leaves(RunConfig))
    assert len(names) > 90
    wrong = []
    for name in names:
        try:
            from_dict(RunConfig, nested(name, given))
        except ConfigError as error:
            group = name.split(".")[0]
            if not any(text in str(error) for text in (name, f"{group}=", f"{group}.")):
                wrong.append((name, str(error)))
    assert wrong == []


@pytest.mark.parametrize("cls", [DataConfig, KernelConfig, PredictConfig, SolverConfig])
def test_values_of_the_right_type_stay_what_they_are(cls):
    first = from_dict(RunConfig, {})
    plain = {f.name: getattr(cls(), f.name) for f in dataclasses.fields(cls)}
    assert from_dict(cls, plain) == cls()
    assert first == RunConfig()
