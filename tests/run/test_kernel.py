"""From configurations to layers: every family, the fields that it takes, and those that it refuses."""

from __future__ import annotations

import dataclasses

import pytest

from ntkpipe.config import KERNELS, KernelConfig
from ntkpipe.errors import ConfigError
from ntkpipe.gram.from_config import check_kernel, kernel_spec, pair_cost
from ntkpipe.kernels.spec import dump_spec
from ntkpipe.kernels.zoo import FAMILIES, fcn, myrtle

SHAPE = (8, 8, 1)
# Another value than the default for each field that a family may take.
OTHER = {
    "depth": 4,
    "width": 24,
    "w_std": 1.5,
    "b_std": 0.25,
    "activation": "erf",
    "activation_args": {"b": 2.0},
    "parameterization": "standard",
    "filter": (5, 5),
    "padding": "CIRCULAR",
    "pool": "vec",
    "pool_radius": 1,
    "blocks": 2,
    "widen": 2,
    "mechanism": "RELU",
    "length_scale": 0.5,
    "nu": 2.5,
    "path": "layers.json",
    "parts": ({"kind": "fcn"},),
    "weights": "w.npz",
    "seed": 1,
    "initialiser": "orthogonal",
    "outputs": "pseudo",
    "scale": 2.0,
    "train": "K.npy",
    "test": "K_test.npy",
    "test_diagonal": "k.npy",
}


def test_kinds_are_the_families_and_files():
    assert (*FAMILIES, "spec", "empirical", "sum", "product", "features", "gram") == KERNELS
    files = {"path", "parts", "scale", "train", "test", "test_diagonal", "weights", "seed", "initialiser", "outputs"}
    fields = {f.name for f in dataclasses.fields(KernelConfig)} - {"kind", "dtype", "readout_depths"}
    assert {name for family in FAMILIES.values() for name in family.takes} | files == fields == set(OTHER)


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_field_has_an_effect_or_is_refused(kind):
    base = KernelConfig(kind=kind, depth=10 if kind == "wide_resnet" else 3, nu=1.5 if kind == "matern" else None)
    if "depth" not in FAMILIES[kind].takes:
        base = dataclasses.replace(base, depth=KernelConfig.depth)
    spec = kernel_spec(base, SHAPE)
    for name, value in OTHER.items():
        changes = {name: 16 if (kind, name) == ("wide_resnet", "depth") else value}
        if name == "activation_args" and "activation" in FAMILIES[kind].takes:
            changes["activation"] = "erf"
        if name == "pool_radius" and kind == "cntk":
            base = dataclasses.replace(base, pool="lap")
            spec = kernel_spec(base, SHAPE)
        changed = dataclasses.replace(base, **changes)
        if name in FAMILIES[kind].takes:
            assert kernel_spec(changed, SHAPE) != spec
        else:
            with pytest.raises(
                ConfigError, match=f"kernel.{name} has no meaning for kernel={kind}, which takes kernel."
            ):
                kernel_spec(changed, SHAPE)


def test_shapes_matter_to_myrtle_networks_alone():
    for kind, family in FAMILIES.items():
        base = KernelConfig(kind=kind, nu=1.5 if kind == "matern" else None)
        if kind == "wide_resnet":
            base = dataclasses.replace(base, depth=16)
        made = kernel_spec(base, (8, 8, 1)), kernel_spec(base, (32, 32, 3))
        assert (made[0] != made[1]) == family.needs_image_shape == kind.startswith("myrtle")


def test_before_images_are_known_all_but_their_shape_is_checked():
    check_kernel(KernelConfig(kind="myrtle10"))
    with pytest.raises(ConfigError, match=r"layer 1 \(leaky_relu\): needs alpha"):
        check_kernel(KernelConfig(kind="myrtle10", activation="leaky_relu"))
    with pytest.raises(ConfigError, match="8 x 6 pixels"):
        kernel_spec(KernelConfig(kind="myrtle10"), (8, 6, 3))


def test_files(tmp_path):
    (tmp_path / "a.yaml").write_text(dump_spec(myrtle(5, SHAPE), "yaml"))
    assert kernel_spec(KernelConfig(kind="spec", path=str(tmp_path / "a.yaml")), SHAPE) == myrtle(5, SHAPE)
    with pytest.raises(ConfigError, match="has no meaning for kernel=spec, which takes kernel"):
        kernel_spec(KernelConfig(kind="spec", path="a.yaml", depth=5), SHAPE)


def test_cost_is_of_images_of_the_shape():
    assert pair_cost(fcn(1), (8, 8, 1)).product_flops == 2 * 64
    with pytest.raises(ConfigError, match=r"layer \d+ \(avg_pool\)"):
        pair_cost(myrtle(5, (32, 32, 3)), (8, 8, 3))
