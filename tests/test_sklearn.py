"""Estimators: scikit-learn's own checks, the same numbers as predictions in memory, and what they share."""

from __future__ import annotations

import math
import pickle
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_wine
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from ntkpipe import Architecture, predict_in_memory, stax
from ntkpipe.dynamics.gaussian_process import Eigensystem
from ntkpipe.dynamics.shared import SharedKernels, shared_kernels
from ntkpipe.errors import ConfigError
from ntkpipe.sklearn import NTKClassifier, NTKRegressor

RNG = np.random.default_rng(0)
X, NEW = RNG.standard_normal((30, 5)), RNG.standard_normal((7, 5))
LABELS = np.array(["a", "b", "c"])[np.arange(30) % 3]
TARGETS = np.sin(X[:, 0]) + X[:, 1]
SPEC = stax.serial(stax.Dense(64, 1.4, 0.1), stax.Relu(), stax.Dense(10, 1.4)).to_spec()
NETWORK = Architecture.from_spec(SPEC)


@pytest.fixture(autouse=True)
def _nothing_kept():
    shared_kernels.clear()


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [NTKClassifier(), NTKRegressor()], ids=["classifier", "regressor"])
def test_the_checks_of_scikit_learn(estimator):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # null directions of the checks' own data
        results = check_estimator(estimator, on_fail=None, on_skip=None)
    assert [r["check_name"] for r in results if r["status"] not in ("passed", "skipped")] == []
    assert [r["check_name"] for r in results if r["status"] == "skipped"] in ([], ["check_array_api_input"])


@pytest.mark.parametrize("kernel", ["ntk", "nngp"])
@pytest.mark.parametrize("time", [50.0, math.inf])
def test_the_same_as_predictions_in_memory(kernel, time):
    options = {"kernel": kernel, "ridge": 1e-2}
    model = NTKRegressor(SPEC, time=time, normalize_y=False, **options).fit(X, TARGETS)
    mean, deviation = model.predict(NEW, return_std=True)
    made = predict_in_memory(SPEC, X, TARGETS[:, None], NEW, times=time, covariance="diagonal", **options)
    np.testing.assert_allclose(mean, made.mean[0, :, 0], atol=1e-10)
    assert made.covariance is not None
    np.testing.assert_allclose(deviation**2, made.covariance[0], atol=1e-10)
    classifier = NTKClassifier(Architecture.from_spec(SPEC), time=time, **options).fit(X, LABELS)
    made = predict_in_memory(SPEC, X, np.arange(30) % 3, NEW, times=time, **options)
    np.testing.assert_allclose(classifier.decision_function(NEW), made.mean[0], atol=1e-10)
    assert (classifier.predict(NEW) == np.array(["a", "b", "c"])[made.mean[0].argmax(axis=1)]).all()


def test_targets_are_normalised_and_predictions_are_not():
    plain = NTKRegressor(SPEC, ridge=1e-2).fit(X, TARGETS)
    moved = NTKRegressor(SPEC, ridge=1e-2).fit(X, np.stack([5.0 + 3.0 * TARGETS, -TARGETS], axis=1))
    mean, deviation = plain.predict(NEW, return_std=True)
    means, deviations = moved.predict(NEW, return_std=True)
    np.testing.assert_allclose(means, np.stack([5.0 + 3.0 * mean, -mean], axis=1), atol=1e-12)
    np.testing.assert_allclose(deviations, np.stack([3.0 * deviation, deviation], axis=1), rtol=1e-9)


def test_probabilities_are_those_of_drawn_networks():
    model = NTKClassifier(SPEC, ridge=1e-2).fit(X, LABELS)
    made = predict_in_memory(SPEC, X, np.arange(30) % 3, NEW, ridge=1e-2, covariance="diagonal")
    assert made.covariance is not None
    deviation = np.sqrt(made.covariance[0])[:, None, None]
    drawn = made.mean[0][:, :, None] + deviation * np.random.default_rng(1).standard_normal((7, 3, 200_000))
    shares = np.stack([(drawn.argmax(axis=1) == k).mean(axis=1) for k in range(3)], axis=1)
    found = model.predict_proba(NEW)
    np.testing.assert_allclose(found, shares, atol=5 * math.sqrt(0.25 / 200_000))
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-12)


def test_families_images_and_copies():
    x, new = RNG.standard_normal((9, 8, 8, 1)), RNG.standard_normal((3, 8, 8, 1))
    model = NTKClassifier("cnn_vec", architecture_args={"depth": 1}, ridge=1e-2)
    expected = clone(model).fit(x, np.arange(9) % 2).decision_function(new)
    rows = clone(model).set_params(image_shape=(8, 8, 1)).fit(x.reshape(9, -1), np.arange(9) % 2)
    np.testing.assert_array_equal(rows.decision_function(new.reshape(3, -1)), expected)
    copied = pickle.loads(pickle.dumps(rows))
    np.testing.assert_allclose(copied.decision_function(new.reshape(3, -1)), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"architecture": "resnet999"}, "not one of fcn"),
        ({"architecture_args": {"widht": 3}}, "fcn has no widht; known: depth"),
        ({"architecture": SPEC, "architecture_args": {"depth": 3}}, "leave it out"),
        ({"kernel": "rbf"}, "ntk, nngp"),
        ({"dtype": "float16"}, "float32, float64"),
        ({"image_shape": (2, 2, 1)}, "height, width, channels"),
        ({"ridge": -1.0}, "ridge"),
        ({"time": -1.0}, "time"),
    ],
)
def test_what_is_refused(options, text):
    with pytest.raises(ValueError, match=text):
        NTKClassifier(**options).fit(X, LABELS)


def test_null_directions_warn():
    with pytest.warns(UserWarning, match="null direction"):
        NTKRegressor(SPEC).fit(np.concatenate([X, X[:2]]), np.concatenate([TARGETS, TARGETS[:2]]))
    with pytest.raises(ConfigError, match="one class"):
        NTKClassifier(SPEC).fit(X, np.zeros(30))


def test_a_search_evaluates_every_pair_once():
    x, y = load_wine(return_X_y=True)
    x = StandardScaler().fit_transform(x)
    before = shared_kernels.evaluated
    search = GridSearchCV(NTKClassifier("fcn"), {"ridge": [1e-2, 1e-1], "kernel": ["ntk", "nngp"]}, cv=4).fit(x, y)
    assert shared_kernels.evaluated - before <= len(x) ** 2  # not 4 folds x 4 settings x 15 / 16 times as many
    assert search.best_score_ > 0.95
    alone = cross_val_score(clone(search.best_estimator_), x, y, cv=4)
    shared_kernels.clear()
    np.testing.assert_array_equal(cross_val_score(clone(search.best_estimator_), x, y, cv=4), alone)


def test_a_store_serves_later_processes(tmp_path, monkeypatch):
    x, y = load_wine(return_X_y=True)
    x, made = StandardScaler().fit_transform(x), []
    decompose = Eigensystem.of
    monkeypatch.setattr(Eigensystem, "of", lambda matrix, *rest: made.append(len(matrix)) or decompose(matrix, *rest))
    settings = {"ridge": [1e-2, 1e-1], "time": [1e3, math.inf]}

    def search() -> GridSearchCV:
        shared_kernels.clear()  # as in another process
        return GridSearchCV(NTKClassifier("fcn", store=tmp_path / "kept"), settings, cv=3).fit(x, y)

    first = search()
    assert len(made) == 4  # one of each fold and one of all points, for all ridges and times
    before = shared_kernels.evaluated
    second = search()
    assert (len(made), shared_kernels.evaluated) == (4, before)
    for name in ("mean_test_score", "params"):
        np.testing.assert_array_equal(second.cv_results_[name], first.cv_results_[name])
    for file in (tmp_path / "kept" / "estimators").iterdir():
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    assert search().best_score_ == first.best_score_
    assert len(made) == 8  # what is damaged is computed again, and replaced
    search()
    assert len(made) == 8


def test_float32_leaves_out_the_null_directions_of_float64(tmp_path):
    """A linear network of 5 numbers has a kernel of rank 6; also from a store, which keeps the size of the errors."""
    x, y = np.random.default_rng(0).standard_normal((30, 5)), np.random.default_rng(1).standard_normal(30)
    linear = [{"op": "flatten"}, {"op": "dense", "features": 1, "w_std": 1.0, "b_std": 0.1}]
    made = []
    for settings in ({}, {"dtype": "float32"}, 2 * [{"dtype": "float32", "store": tmp_path / "kept"}]):
        for one in settings if isinstance(settings, list) else [settings]:
            shared_kernels.clear()
            with pytest.warns(UserWarning, match=r"singular to rounding \(24 null directions"):
                made.append(NTKRegressor(linear, **one).fit(x, y).predict(x))
    for other in made[1:]:
        np.testing.assert_allclose(other, made[0], atol=1e-4)


def test_a_pipeline():
    x, y = load_diabetes(return_X_y=True, scaled=False)
    model = make_pipeline(StandardScaler(), NTKRegressor("fcn", kernel="nngp", ridge=1.0)).fit(x[:300], y[:300])
    assert model.score(x[300:], y[300:]) > 0.45


class Counted(Architecture):
    """An architecture that counts pairs."""

    pairs = 0

    def __call__(self, x1, x2=None, *, layout=None):
        self.pairs += len(x1) * len(x1 if x2 is None else x2)
        return super().__call__(x1, x2, layout=layout)


@pytest.mark.parametrize("limit", [0, 40_000, 1 << 30])
def test_shared_kernels_are_the_kernels(limit):
    """Whatever was asked for before, in blocks that overlap, with rows that are equal, and with room for all, some or nothing."""
    shared, counted = SharedKernels(limit), Counted.from_spec(SPEC)
    rng, points = np.random.default_rng(3), np.concatenate([X, X[:3]])
    for _ in range(12):
        rows = rng.choice(len(points), rng.integers(1, 25), replace=False)
        columns = None if rng.random() < 0.4 else rng.choice(len(points), rng.integers(1, 25))
        made = shared.kernels(counted, points[rows], None if columns is None else points[columns])
        expected = NETWORK(points[rows], None if columns is None else points[columns])
        for kernel, value in zip(made, expected, strict=True):
            np.testing.assert_allclose(kernel, value, rtol=1e-12, atol=1e-12)
        system = shared.eigensystem(counted, points[rows], "ntk")
        np.testing.assert_allclose(
            (system.vectors * system.values) @ system.vectors.T, NETWORK(points[rows]).ntk, atol=1e-10
        )
    assert counted.pairs == shared.evaluated
    if limit == 1 << 30:
        assert counted.pairs <= 2 * len(X) ** 2
    shared.clear()
    assert shared._bytes() == 0


def test_dropout_is_not_shared():
    network = stax.serial(stax.Dense(8), stax.Relu(), stax.Dropout(0.5), stax.Dense(1))
    shared = SharedKernels()
    own, cross = shared.kernels(network, X), shared.kernels(network, X, X.copy())
    assert np.diagonal(own.nngp) == pytest.approx(np.diagonal(network(X).nngp))
    assert np.diagonal(cross.nngp) == pytest.approx(np.diagonal(network(X, X.copy()).nngp))
    assert np.diagonal(own.nngp).mean() > 1.5 * np.diagonal(cross.nngp).mean()


def test_models_of_the_comparison_have_settings_of_their_own():
    """The script of docs/sklearn.md builds what it says; a search over its settings fits."""
    from sklearn_comparison import models

    x, y = load_wine(return_X_y=True)
    for label, model in models(classes=True).items():
        grid = getattr(model, "param_grid", {})
        assert set(grid) <= set(getattr(model, "estimator", model).get_params()), label
    search = models(classes=True)["NTKClassifier"].set_params(param_grid={"ridge": [1e-2, 1e-1]})
    assert make_pipeline(StandardScaler(), search).fit(x[::2], y[::2]).score(x[1::2], y[1::2]) > 0.9
    assert set(models(classes=False)["NTKRegressor"].param_grid) <= set(NTKRegressor().get_params())
