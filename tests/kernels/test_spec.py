"""Architectures as plain lists: canonical form, fingerprint, files, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest
from layer_kinds import NETWORKS

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.spec import canonical_spec, dump_spec, fingerprint, load_spec
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


CONV = {"op": "conv", "features": 8, "filter": [3, 3]}
HEADS = {"op": "global_self_attention", "n_heads": 1, "n_chan_out": 8, "n_chan_key": 8, "n_chan_val": 8}


def nested(levels):
    layer = CONV
    for _ in range(levels):
        layer = {"op": "residual_sum", "branches": [[layer], []]}
    return layer


def test_the_peers_lists_are_canonical_and_survive_files(reference_folder, tmp_path):
    cases = json.loads((reference_folder / "public.json").read_text())["cases"]
    assert len(cases) == 27
    for case in cases:
        spec = canonical_spec(case["arch"])
        assert spec == case["arch"], case["name"]
        for form in ("json", "yaml"):
            (tmp_path / f"a.{form}").write_text(dump_spec(spec, form))
            assert load_spec(tmp_path / f"a.{form}") == spec, case["name"]


def test_defaults_of_layers_with_windows():
    made = canonical_spec([CONV, {"op": "avg_pool", "window": (2, 3)}, {"op": "sum_pool", "window": [4, 4]}])
    assert made[0] == CONV | {
        "strides": [1, 1],
        "padding": "SAME",
        "w_std": 1.0,
        "b_std": None,
        "parameterization": "ntk",
    }
    assert made[1] == {
        "op": "avg_pool",
        "window": [2, 3],
        "strides": [2, 3],
        "padding": "VALID",
        "normalize_edges": False,
    }
    assert made[2]["strides"] == [4, 4]
    assert "normalize_edges" not in made[2]


def test_branches_are_canonical_too_and_keep_their_order():
    made = canonical_spec([{"op": "residual_sum", "branches": [({"op": "relu"}, CONV), ()]}])
    assert made == canonical_spec(made)
    assert made[0]["branches"][0][1]["strides"] == [1, 1]
    assert made[0]["branches"][1] == []
    swapped = [{"op": "residual_sum", "branches": made[0]["branches"][::-1]}]
    assert fingerprint(made) != fingerprint(swapped)


def test_files_hold_formulas_and_words_that_yaml_takes_for_others(tmp_path):
    spec = canonical_spec([DENSE, {"op": "elementwise", "function": "x * sigmoid(x)"}, {"op": "relu"}, nested(3)])
    for form in ("json", "yaml"):
        (tmp_path / f"a.{form}").write_text(dump_spec(spec, form))
        assert load_spec(tmp_path / f"a.{form}") == spec


def test_what_changes_nothing_has_the_same_fingerprint():
    for one, other in (
        (HEADS, HEADS | {"pos_emb_type": "NONE", "pos_emb_p_norm": 2}),
        (HEADS | {"pos_emb_type": "SUM"}, HEADS | {"pos_emb_type": "SUM", "pos_emb_p_norm": 1}),
        (
            {"op": "resize", "shape": [2, 2], "method": "nearest"},
            {"op": "resize", "shape": [2, 2], "method": "nearest", "antialias": False},
        ),
    ):
        assert fingerprint([one]) == fingerprint([other])
    assert "pos_emb_type" not in canonical_spec([HEADS])[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_survives_files(name, tmp_path):
    spec = canonical_spec(NETWORKS[name])
    for form in ("json", "yaml"):
        (tmp_path / f"a.{form}").write_text(dump_spec(spec, form))
        assert load_spec(tmp_path / f"a.{form}") == spec
    assert fingerprint(spec) == fingerprint(NETWORKS[name])


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ([CONV | {"filter": 3}], r"layer 0 \(conv\): filter=3 must be two integers"),
        ([CONV | {"filter": [3, 3, 3, 3]}], "must be two integers"),
        ([CONV | {"filter": [3, 0]}], "filter=0 must be at least 1"),
        ([CONV | {"filter": [3, 99999]}], "filter=99999 must be at most 4096"),
        ([CONV | {"filter": [3, 2.0]}], r"filter=2\.0 must be an integer"),
        ([CONV | {"strides": [True, 1]}], "integer"),
        ([CONV | {"padding": "same"}], "not one of SAME, VALID, CIRCULAR"),
        ([{"op": "avg_pool"}], "needs window"),
        ([{"op": "avg_pool", "window": [2, 2], "normalize_edges": 1}], "normalize_edges=1 must be true or false"),
        ([{"op": "sum_pool", "window": [2, 2], "normalize_edges": True}], "unknown parameter normalize_edges"),
        ([{"op": "dropout", "rate": 0}], "rate=0 must be above 0"),
        ([{"op": "dropout", "rate": 1.1}], r"rate=1\.1 must be at most 1"),
        ([{"op": "layer_norm", "axis": [1, 2]}], r"\[-1\] or \[1, 2, 3\]"),
        (
            [HEADS | {"linear_scaling": False}],
            r"layer 0 \(global_self_attention\): linear_scaling=False has no such kernel",
        ),
        ([HEADS | {"linear_scaling": 1}], "linear_scaling=1 must be true or false"),
        ([HEADS | {"mechanism": ["SOFTMAX"]}], "not one of SOFTMAX, IDENTITY, RELU"),
        ([HEADS | {"pos_emb_type": "ADD"}], "not one of NONE, SUM, CONCAT"),
        ([HEADS | {"val_pos_emb": True}], "val_pos_emb: there are no positional embeddings unless"),
        ([HEADS | {"pos_emb_type": "SUM", "n_chan_pos_emb": 3}], "n_chan_pos_emb is for pos_emb_type=CONCAT"),
        ([HEADS | {"pos_emb_type": "SUM", "pos_emb_decay_fn": "exp(-x)"}], "uses the name x; known names: d"),
        ([HEADS | {"pos_emb_type": "SUM", "pos_emb_decay_fn": "1 / d"}], "not a finite real number at d = 0"),
        ([{"op": "resize", "shape": [0, 3]}], "height and a width of at least 1"),
        ([{"op": "resize", "shape": [3, 3], "method": "cubic"}], "not one of linear, nearest"),
        ([CONV | {"op": "conv_transpose", "taps": "delta"}], "unknown parameter taps"),
        ([{"op": "residual_sum"}], "needs branches"),
        ([{"op": "fan_in_product", "branches": [CONV]}], "list of lists"),
        ([{"op": "fan_in_concat", "branches": [[CONV], []], "fractions": [1.0]}], "1 fractions for 2 branches"),
        ([{"op": "fan_in_concat", "branches": [[CONV], []], "fractions": [0.5, 0.4]}], "must sum to 1, not 0.9"),
        (
            [{"op": "fan_in_concat", "branches": [[CONV], []], "fractions": [1.2, -0.2]}],
            "fractions=1.2 must be at most 1",
        ),
        ([{"op": "fan_in_concat", "branches": [[CONV], []], "fractions": 0.5}], "must be a list of numbers"),
        ([{"op": "residual_sum", "branches": []}], "list of lists"),
        ([{"op": "residual_sum", "branches": [{"op": "relu"}]}], "list of lists"),
        ([{"op": "residual_sum", "branches": "relu"}], "list of lists"),
        (
            [DENSE, {"op": "residual_sum", "branches": [[CONV, {"op": "relu"}, {"op": "conv", "features": 8}], []]}],
            r"^layer 1 \(residual_sum\), branch 0, layer 2 \(conv\): needs filter$",
        ),
        (
            [{"op": "residual_sum", "branches": [[], [{"op": "residual_sum", "branches": [[], [{"op": "x"}]]}]]}],
            r"^layer 0 \(residual_sum\), branch 1, layer 0 \(residual_sum\), branch 1, layer 0 \(x\): unknown op",
        ),
        ([nested(33)], "nested more than 32 deep"),
        ([nested(400)], "nested more than 32 deep"),
        ([{"op": "relu"}] * 200_001, "more than 200,000 layers"),
        ([{"op": "residual_sum", "branches": [[]] * 200_001}, {"op": "relu"}], "more than 200,000 layers"),
        ([DENSE | {"features": 10**400}], "must be at most 2147483647"),
        ([DENSE | {"w_std": 10**400}], "must be finite"),
        ([DENSE | {"w_std": "1" * 10_000}], r"^.{0,200}must be a number$"),
        ([DENSE | {"x" * 10_000: 1}], r"^.{0,200}known: features"),
        ([{"op": "\x1b[2J" * 100}], r"^[ -~]*$"),
        ([[DENSE]], r"layer 0 \(\[.*\): a layer must be a mapping"),
    ],
)
def test_malformed_layers_are_refused_in_few_words(layers, text):
    with pytest.raises(ConfigError, match=text) as caught:
        canonical_spec(layers)
    assert len(str(caught.value)) < 2500


def test_a_small_file_that_stands_for_a_huge_network_is_refused(tmp_path):
    """Each list holds the one before nine times: 9^12 layers."""
    lines = ["- &a0 {op: relu}"]
    for k in range(1, 13):
        lines.append(f"- &a{k} {{op: residual_sum, branches: [[{', '.join([f'*a{k - 1}'] * 9)}]]}}")
    (tmp_path / "a.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="more than 200,000 layers"):
        load_spec(tmp_path / "a.yaml")


def test_files_of_any_content_are_refused_as_files(tmp_path):
    for name, content, text in (
        ("deep.yaml", "[" * 5_000, "not valid YAML"),
        ("torn.yaml", "[{op: relu", "not valid YAML: line 1, column 11: expected ',' or '}'"),
        ("deep.json", "[" * 5_000 + "]" * 5_000, "nested too deeply|list"),
        ("binary.json", b"\xff\xfe\x00", "cannot be read"),
        ("nan.json", '[{"op": "dense", "features": 8, "w_std": NaN}]', "finite"),
        ("digits.json", '[{"op": "dense", "features": ' + "9" * 10_000 + "}]", "JSON|at most"),
        ("twice.json", '[{"op": "dense", "features": 8, "features": 9}]', "'features' occurs twice"),
        ("twice.yaml", "- {op: dense, features: 8, features: 9}", "'features'.* occurs twice"),
        ("key.yaml", "- {op: dense, features: 8, [1]: 9}", "YAML|unknown parameter"),
        ("merge.yaml", "- &a {op: dense, features: 8}\n- {<<: *a, features: 9}", "not valid YAML.*merge"),
        ("empty.yaml", "", "list of layers, got NoneType"),
        ("text.yaml", "relu", "list of layers, got str"),
        ("cycle.yaml", "- &a {op: residual_sum, branches: [[*a]]}", "nested more than 32 deep"),
    ):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ConfigError, match=text) as caught:
            load_spec(path)
        assert len(str(caught.value)) < 3000
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_spec("a\0.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_spec(tmp_path)
