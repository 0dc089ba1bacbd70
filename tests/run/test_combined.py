"""Sums and products of kernels: from the tiles of their parts, which any run of one of them shares."""

from __future__ import annotations

import numpy as np
import pytest
from lab import QUICK, Lab
from sklearn.datasets import load_digits

import ntkpipe as nk
from ntkpipe.errors import ConfigError
from ntkpipe.run.opened import open_run
from ntkpipe.run.prepare import reopen

_WORDS = (*QUICK, "kernel.dtype=float64", "predict.times=[100,inf]", "predict.ridges=[1e-3]", "report=false")
_SHALLOW, _DEEP, _RADIAL = "kind:fcn,depth:1", "kind:fcn,depth:3", "kind:rbf,length_scale:2.0"


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    found = Lab(tmp_path_factory.mktemp("lab"), *_WORDS)
    found.run("shallow", "kernel.depth=1")
    found.run("deep", "kernel.depth=3")
    found.run("radial", "kernel=rbf", "kernel.length_scale=2.0")
    return found


def matrices(lab: Lab, name: str, kernel: str = "ntk") -> tuple[np.ndarray, np.ndarray]:
    blocks = reopen(lab.opened(name)).kernels
    return blocks.train(kernel).to_numpy(), blocks.test(kernel).to_numpy()


def test_a_sum_of_stored_kernels_evaluates_nothing(lab):
    made = lab.run("sum", "kernel=sum", f"kernel.parts=[{{{_SHALLOW}}},{{{_DEEP}}}]", "kernel.weights=[0.25,2]")
    assert lab.receipt("sum", "gram")["computed"] == 0
    for kernel in ("ntk", "nngp"):
        parts = [matrices(lab, name, kernel) for name in ("shallow", "deep")]
        train, test = ((0.25 * a + 2 * b) for a, b in zip(*parts, strict=True))
        whole = matrices(lab, "sum", kernel)
        np.testing.assert_allclose(whole[0], train, rtol=1e-15)
        np.testing.assert_allclose(whole[1], test, rtol=1e-15)
        # And what is predicted is regression with that very matrix.
        k = made.kernels.index(kernel)
        ridge = made.attributes["absolute_ridges"][kernel][0]
        labels = reopen(lab.opened("sum")).data.labels()
        exact = test @ np.linalg.solve(train + ridge * np.eye(len(train)), labels.y_train[: len(train)])
        order = np.argsort(labels.test_index[: len(exact)], kind="stable")
        np.testing.assert_allclose(made.mean[k, -1, 0], exact[order], atol=1e-9)
    assert lab.command("verify", "run_dir=sum", "tiles=2") == 0


def test_runs_and_families_stand_for_their_kernels_and_missing_parts_are_computed(lab):
    lab.run("product", "kernel=product", "kernel.parts=[deep,{kind:rbf,length_scale:2.0},{kind:fcn,depth:2}]")
    assert lab.receipt("product", "gram")["computed"] > 0
    parts = [matrices(lab, name) for name in ("deep", "radial")]
    two = nk.Gram(nk.zoo.fcn(depth=2), nk.load_dataset("digits", train_size=60, test_size=20), dtype="float64")
    two.compute(progress=False)
    train = parts[0][0] * parts[1][0] * two.train("ntk").to_numpy()
    np.testing.assert_allclose(matrices(lab, "product")[0], train, rtol=1e-12)
    # New points are predicted from tiles of their own.
    new = open_run(lab.path / "product").predict(load_digits().images[:3])
    assert np.isfinite(new.mean).all()
    again = lab.run("again", "kernel=product", "kernel.parts=[deep,radial,{kind:fcn,depth:2}]")
    assert lab.receipt("again", "gram")["computed"] == 0
    np.testing.assert_array_equal(again.mean, lab.predictions("product").mean)


def test_combinations_may_be_parts_and_tiles_need_not_be_stored(lab):
    inner = f"{{kind:product,parts:[{{{_DEEP}}},{{{_RADIAL}}}]}}"
    words = ("kernel=sum", f"kernel.parts=[{inner},{{{_SHALLOW}}}]")
    stored = lab.run("nested", *words)
    deep, radial, shallow = (matrices(lab, name)[0] for name in ("deep", "radial", "shallow"))
    np.testing.assert_allclose(matrices(lab, "nested")[0], 0.5 * deep * radial + 0.5 * shallow, rtol=1e-14)
    recomputed = lab.run("free", *words, "store.gram=recompute", "store.url=elsewhere")
    np.testing.assert_allclose(recomputed.mean, stored.mean, atol=1e-9)


def test_flips_of_a_sum_are_the_sum_of_flips(lab):
    words = (
        "data=synthetic",
        "data.n_train=24",
        "data.n_test=8",
        "data.shape=[4,4,1]",
        "data.train_size=null",
        "data.test_size=null",
        "grid.edge=16",
    )
    parts = "kernel.parts=[{kind:cnn_gap,depth:1},{kind:cnn_vec,depth:1}]"
    one = lab.run("flips", "kernel=sum", parts, "augment=hflip", "predict.covariance=diagonal", *words)
    assert np.isfinite(one.variance).all()
    assert lab.command("run", *_WORDS, "run_dir=no", "kernel=product", parts, "augment=hflip", *words) == 2


def test_python_has_sums_and_products():
    data = nk.load_dataset("digits", train_size=40, test_size=8)
    networks = [nk.zoo.fcn(depth=1), nk.zoo.fcn(depth=2, activation="erf"), nk.zoo.rbf(length_scale=1.5)]
    made = []
    for network in (*networks, nk.KernelSum([nk.KernelProduct(networks[:2]), networks[2]], [1.0, 3.0])):
        gram = nk.Gram(network, data, dtype="float64")
        gram.compute(progress=False)
        made.append(gram.test("nngp").to_numpy())
    np.testing.assert_allclose(made[3], made[0] * made[1] + 3.0 * made[2], rtol=1e-12)
    assert "KernelSum" in repr(gram)
    assert len(gram.plan().stores) == 3
    with pytest.raises(ConfigError, match="architectures"):
        nk.Gram(nk.KernelSum([np.eye(2)]), data)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("kernel=sum",), "needs kernel.parts"),
        (("kernel=sum", "kernel.parts=[fcn,rbf]", "kernel.weights=[1]"), "2 kernels has 1 weights"),
        (("kernel=sum", "kernel.parts=[fcn,rbf]", "kernel.weights=[1,-1]"), "at least 0"),
        (("kernel=sum", "kernel.parts=[fcn,no_such]"), "is not a family"),
        (("kernel=sum", "kernel.parts=[{kind:fcn,w_std:-1}]"), "parts[0]: kernel.w_std=-1.0"),
        (("kernel=sum", "kernel.parts=[{kind:fcn,nu:1.5}]"), "kernel.nu has no meaning for kernel=fcn"),
        (("kernel=sum", "kernel.parts=[empirical]"), "parts[0] is kernel=empirical"),
        (("kernel=sum", "kernel.parts=[fcn,{kind:gram,train:K.npy,test:T.npy}]"), "parts[1] is kernel=gram"),
        (("kernel=product", "kernel.parts=[{kind:features}]"), "give the result as kernel=gram"),
        (("kernel=product", "kernel.parts=[fcn,rbf]", "kernel.weights=[1,1]"), "kernel.weights"),
        (("kernel=fcn", "kernel.weights=[1,1]"), "kernel.weights"),
        (("kernel=sum", "kernel.parts=[fcn,rbf]", "store.name=mine"), "leave store.name out"),
    ],
)
def test_what_is_no_combination_is_refused(work, words, said):
    found = work("run", *_WORDS, *words)
    assert found.code == 2
    assert said in found.err
