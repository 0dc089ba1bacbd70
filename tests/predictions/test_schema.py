from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ntkpipe.errors import ConfigError


def test_arrays_are_read_only_and_the_callers_are_not(make) -> None:
    mean = np.zeros((2, 3, 2, 7, 3))
    predictions = dataclasses.replace(make(), mean=mean)
    with pytest.raises(ValueError, match="read-only"):
        predictions.mean[0] = 1
    mean[0] = 1


def test_shape_and_entries(make) -> None:
    predictions = make()
    assert predictions.shape == (2, 3, 2, 7, 3)
    assert len(list(predictions.entries())) == 12
    assert predictions.is_classification
    assert not make(regression=True).is_classification


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": np.zeros((2, 3, 2, 7, 4))}, "mean has shape"),
        ({"error_bound": np.full((2, 3, 2, 7, 3), -1.0)}, "error_bound must"),
        ({"error_bound": np.full((2, 3, 2, 7, 3), np.nan)}, "error_bound must"),
        ({"error_estimate": np.full((2, 3, 2, 7, 3), np.nan)}, "error_estimate must"),
        ({"error_estimate": np.zeros((2, 3, 2, 7))}, "error_estimate has shape"),
        ({"variance": np.full((2, 3, 2, 7), -1e-9)}, "variance must"),
        ({"variance_bound": np.full((2, 3, 2, 7), np.nan)}, "variance_bound must"),
        ({"variance_bound": np.zeros((2, 3, 2, 8))}, "variance_bound has shape"),
        ({"times": np.array([1.0, 1.0, 2.0])}, "ascending"),
        ({"times": np.array([1.0, np.nan, 2.0])}, "ascending"),
        ({"test_index": np.array([0, 2, 1, 3, 4, 5, 6])}, "test_index"),
        ({"label": np.full(7, 3)}, "label must lie"),
        ({"ridge_scale": "huge"}, "ridge_scale"),
        ({"kernels": ("ntk", "ntk")}, "each once"),
        ({"bound_kind": np.full((2, 3, 2), "perhaps")}, "bound_kind"),
        ({"bound_terms": {"../x": np.zeros((2, 3, 2, 3))}}, "identifier"),
    ],
)
def test_wrong_fields_are_named(make, change, message) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(make(), **change)


def test_fingerprint_sees_every_field(make) -> None:
    base = make(covariance=True)
    changes = [
        {"mean": base.mean + 1e-15},
        {"variance": None},
        {"variance_bound": None},
        {"attributes": {}},
        {"ridge_scale": "absolute"},
        {"class_names": ("a", "b", "c")},
        {"bound_terms": {}},
        {"covariance": -base.covariance},
        {"kernels": ("nngp", "ntk")},
    ]
    prints = {dataclasses.replace(base, **change).fingerprint() for change in [{}, *changes]}
    assert len(prints) == len(changes) + 1
    assert make(covariance=True).fingerprint() == base.fingerprint()


def test_attributes_are_json_whatever_their_numbers(make) -> None:
    facts = {"a": float("nan"), "b": [float("inf"), {"c": -float("inf")}], "d": (1.5, None)}
    made = make(variance=False)
    given = dataclasses.replace(made, attributes=facts)
    assert given.attributes == {"a": None, "b": ["inf", {"c": "-inf"}], "d": [1.5, None]}
    assert given.fingerprint() != made.fingerprint()


def test_tensors_or_what_to_install(make) -> None:
    predictions = make()
    try:
        import torch
    except ImportError:
        with pytest.raises(ConfigError, match="pip install torch"):
            predictions.to_torch()
        return
    tensors = predictions.to_torch()
    assert torch.equal(tensors["mean"], torch.tensor(np.array(predictions.mean)))
