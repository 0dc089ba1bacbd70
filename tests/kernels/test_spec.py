"""Architectures as plain lists: canonical form, fingerprint, files, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.spec import canonical_spec, fingerprint, load_spec
from ntkpipe.kernels.zoo import fcn

DENSE = {"op": "dense", "features": 8}


def test_canonical_form_states_every_parameter_and_is_a_fixed_point():
    made = canonical_spec([{"op": "flatten"}, {"w_std": 2, "op": "dense", "features": 8}, {"op": "erf"}])
    assert made[1] == {"op": "dense", "features": 8, "w_std": 2.0, "b_std": None, "parameterization": "ntk"}
    assert isinstance(made[1]["w_std"], float)
    assert made[2] == {"op": "erf", "a": 1.0, "b": 1.0, "c": 0.0}
    assert canonical_spec(made) == made
    assert canonical_spec(json.loads(json.dumps(made))) == made


def test_fingerprint_follows_the_meaning():
    base = fingerprint([DENSE])
    assert base == fingerprint([{"features": 8, "op": "dense", "w_std": 1, "b_std": None, "parameterization": "ntk"}])
    others = [{"b_std": 0.0}, {"w_std": 1.0000000000000002}, {"features": 9}, {"parameterization": "standard"}]
    assert len({base, *(fingerprint([DENSE | change]) for change in others)}) == 5
    assert len(base) == 64


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ([DENSE, {"op": "conv2d"}], r"layer 1 \(conv2d\).*known: flatten, dense"),
        ([{"op": "dense"}], r"layer 0 \(dense\): needs features"),
        ([DENSE | {"wstd": 1.0}], r"unknown parameter wstd; known: features, w_std"),
        ([DENSE | {"w_std": 0.0}], "w_std=0.0 must be above 0"),
        ([DENSE | {"w_std": float("nan")}], "finite"),
        ([DENSE | {"b_std": -1}], "b_std=-1 must be at least 0"),
        ([DENSE | {"features": 8.5}], "integer"),
        ([DENSE | {"features": True}], "integer"),
        ([DENSE | {"parameterization": "mup"}], "not one of ntk, standard"),
        ([DENSE, {"op": "leaky_relu"}], r"layer 1 \(leaky_relu\): needs alpha"),
        ([DENSE, {"op": "layer_norm", "axis": [0]}], r"axis=\[0\] must be \[-1\] or \[1, 2, 3\]"),
        ([DENSE, {"op": "layer_norm", "eps": 0}], "eps=0 must be above 0"),
        ([DENSE, "relu"], r"layer 1 \(relu\): a layer must be a mapping"),
        ([{"op": ["relu"]}], "layer 0"),
        ([], "at least one layer"),
        ({"op": "relu"}, "list of layers"),
    ],
)
def test_malformed_specs_are_refused_by_naming_the_layer(layers, text):
    with pytest.raises(ConfigError, match=text):
        canonical_spec(layers)


def test_load_spec(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([DENSE, {"op": "layer_norm", "eps": 1e-12}]))
    (tmp_path / "a.yaml").write_text("- {op: dense, features: 8}\n- {op: layer_norm, eps: 1e-12}\n")
    assert load_spec(tmp_path / "a.json") == load_spec(tmp_path / "a.yaml")
    (tmp_path / "bad.json").write_text("[{")
    (tmp_path / "bad.yml").write_text("- !!python/object/apply:os.getcwd []\n")
    (tmp_path / "layer.json").write_text('[{"op": "nope"}]')
    (tmp_path / "deep.json").write_text("[" * 100_000)
    for name, text in {
        "bad.json": "not valid JSON",
        "bad.yml": "not valid YML",
        "layer.json": r"layer\.json: layer 0 \(nope\)",
        "deep.json": "not valid JSON",
        "absent.json": "cannot be read",
        "a.txt": "cannot be read",
    }.items():
        with pytest.raises(ConfigError, match=text):
            load_spec(tmp_path / name)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ConfigError, match=r"must end in \.json"):
        load_spec(tmp_path / "a.txt")


def test_fcn():
    spec = fcn(2, width=7, w_std=1.5, b_std=None, activation="leaky_relu", activation_args={"alpha": 0.1})
    assert [layer["op"] for layer in spec] == ["flatten", "dense", "leaky_relu", "dense", "leaky_relu", "dense"]
    assert [layer["features"] for layer in spec if layer["op"] == "dense"] == [7, 7, 10]
    assert [layer["op"] for layer in fcn(0)] == ["flatten", "dense"]
    for bad in ({"depth": -1}, {"depth": 1, "activation": "dense"}, {"depth": 1, "activation_args": {"alpha": 1.0}}):
        with pytest.raises(ConfigError):
            fcn(**bad)


def run(code):
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)


def test_plans_need_no_jax():
    made = run("""
        import sys
        import ntkpipe.kernels.cost, ntkpipe.kernels.spec, ntkpipe.kernels.zoo
        assert not {"jax", "numpy", "yaml"} & set(sys.modules), "a plan's imports"
    """)
    assert made.returncode == 0, made.stderr


def test_kernels_and_worker_need_only_jax_and_numpy():
    made = run("""
        import sys
        for name in ("ray", "zarr", "hydra", "omegaconf", "obstore", "fsspec", "yaml", "pandas", "sklearn"):
            sys.modules[name] = None
        import numpy as np
        from ntkpipe.gram.worker import compute_diagonal, compute_tile
        from ntkpipe.kernels.zoo import fcn
        x = np.ones((3, 2, 2, 1))
        tile = compute_tile(fcn(1), x, None, diagonal=True, dtype="float32", out_dtype="float32")
        own = compute_diagonal(fcn(1), x, dtype="float32")
        assert (np.diag(tile["ntk"]) == own["ntk"]).all()
    """)
    assert made.returncode == 0, made.stderr
