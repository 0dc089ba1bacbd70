"""Computes accuracy, loss, likelihood and calibration of every kernel, time and ridge."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.special
from scipy.special import log_ndtr

from ntkpipe.dynamics.estimates import SIGMAS
from ntkpipe.predictions.calibration import calibration_metrics, of_outputs, usable_variance, z_scores
from ntkpipe.predictions.choice import selection_metrics
from ntkpipe.predictions.doubt import doubt_of
from ntkpipe.storage.plain import json_ready
from ntkpipe.storage.replace import replace_text

if TYPE_CHECKING:
    from ntkpipe.predictions.schema import Predictions

COVERAGE_LEVELS = {
    "coverage_50": 0.6744897501960817,
    "coverage_90": 1.6448536269514722,
    "coverage_95": 1.959963984540054,
}
ECE_BINS = 15
# Nodes of the quadrature of probabilities of classes, and number of test points at once. The memory is at most
# 8 * _BLOCK * c * _NODES bytes.
_NODES, _BLOCK = 64, 1024


def compute_metrics(predictions: Predictions) -> dict[str, Any]:
    """Compute the metrics of every entry as plain values. They are JSON-ready except for infinity.

    Each element of `entries` holds `kernel`, `time`, `ridge`, `bound_kind` and these metrics:

    - `doubt`: None, or the reason why its numbers may be entirely wrong, a key of `doubt.REASONS`;
    - `mse`: mean of (mean - target)^2 over test points and outputs. If the outputs are logits of a loss, it is the
      error of their probabilities, and `log_loss` is the mean of the loss;
    - `max_error_bound`, `median_error_bound`: maximum and median, over test points and outputs, of the bounds on the
      numerical error of the means;
    - `refined`: whether this entry was refined, if answers at `t = inf` were refined (`solver.refine`);
    - `max_error_estimate`, `median_error_estimate`: the same of the error estimates, if errors were estimated, and
      `typical_error`: the median estimate of one standard deviation of the error;
    - for classification `accuracy`, its `accuracy_standard_error` sqrt(a (1 - a) / p), `certain`: the fraction of test
      points whose predicted class no error within the bounds can change, and `certain_by_estimate`: the same fraction
      for errors within the estimates;
    - for regression `rmse`, `r2` and `targets`, as `regression_metrics` returns them;
    - if there are variances `calibration`, as `calibration.calibration_metrics` returns it, `nll` (Gaussian negative
      log-likelihood per target, in nats), `coverage_50`, `coverage_90`, `coverage_95` (the fraction of targets within
      the central predictive intervals), and for classification `ece` (expected calibration error with 15 equal bins,
      arXiv:1706.04599, of the probability that the predicted class has the largest output).

    A metric is None if it cannot be computed because means diverged or a variance is missing.

    Args:
        predictions: predictions of K kernels, T times and R ridges.

    Returns:
        `{"version", "task", "test_points", "outputs", "ridge_scale", "class_names", "entries": [...]}`, and where they
        apply:

        - `known`: False if the labels or targets of the test points are unknown;
        - `of_the_mean`: for regression, the `mse` and `rmse` of predicting the mean of the training targets;
        - `noise_included`: for regression, whether variances include the noise of targets;
        - `beside_infinite`: for one finite network, how far its kernels are from the infinite ones, from
          `finite.beside_infinite`;
        - `refinement`: with `solver.refine`, by kernel `steps` and `corrections` in units of the weights, or why it
          `failed`;
        - `rates`: for discrete steps and momentum, by kernel, how the learning rate compares with its limit;
        - `cross_validation`: by kernel, from `uncertainty.folds`;
        - `selection`: if time and ridge were chosen on training images, the errors there and the test metrics of the
          chosen entries.
    """
    entries = []
    for k, t, r in predictions.entries():
        entry: dict[str, Any] = {
            "kernel": predictions.kernels[k],
            "time": float(predictions.times[t]),
            "ridge": float(predictions.ridges[r]),
            "bound_kind": str(predictions.bound_kind[k, t, r]),
            "doubt": doubt_of(predictions, (k, t, r)),
        }
        refinement = (predictions.attributes.get("solver") or {}).get(entry["kernel"], {}).get("refinement")
        if refinement is not None:
            entry["refined"] = "steps" in refinement and math.isinf(entry["time"])
        entries.append(entry | _entry_metrics(predictions, (k, t, r)))
    selection = selection_metrics(predictions, entries)
    centre = predictions.attributes.get("target_mean")
    of_the_mean = {}
    if centre is not None and predictions.has_targets:
        found = float(np.mean((predictions.target - np.array(centre)) ** 2))
        of_the_mean = {"of_the_mean": {"mse": found, "rmse": math.sqrt(found)}}
    return {
        "version": 1,
        "task": "classification" if predictions.predicts_classes else "regression",
        "test_points": len(predictions.test_index),
        **({} if predictions.has_targets else {"known": False}),
        "outputs": len(predictions.class_names),
        "class_names": list(predictions.class_names),
        "ridge_scale": predictions.ridge_scale,
        **of_the_mean,
        **({} if predictions.predicts_classes else {"noise_included": predictions.noise is not None}),
        "entries": entries,
        **({} if selection is None else {"selection": selection}),
        **({"rates": rates} if (rates := predictions.attributes.get("rates")) else {}),
        **_beside_infinite(predictions),
        **_refinement(predictions),
        **({"cross_validation": validated} if (validated := predictions.attributes.get("cross_validation")) else {}),
    }


def _refinement(predictions: Predictions) -> dict[str, Any]:
    """Return how answers at `t = inf` were refined, by kernel; empty without refinement."""
    solver = predictions.attributes.get("solver") or {}
    found = {name: facts["refinement"] for name, facts in solver.items() if "refinement" in facts}
    return {"refinement": found} if found else {}


def _beside_infinite(predictions: Predictions) -> dict[str, Any]:
    """Return the comparison of one finite network with the infinite one, without the lists of eigenvalues."""
    found = predictions.attributes.get("beside_infinite")
    if found is None:
        return {}
    kernels = {}
    for name, one in found["kernels"].items():
        ratios = np.array(one["spectrum_ratio"])
        kernels[name] = {key: one[key] for key in ("deviation", "trace_ratio", "alignment")} | {
            "spectrum_ratio": {"first": float(ratios[0]), "median": float(np.median(ratios)), "last": float(ratios[-1])}
        }
    return {"beside_infinite": {"points": found["points"], "kernels": kernels}}


def largest_errors(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return `max_error_bound` over all entries of `compute_metrics`, and `max_error_estimate` if errors were estimated."""
    entries = metrics["entries"]
    estimates = [entry["max_error_estimate"] for entry in entries if "max_error_estimate" in entry]
    bound = max((entry["max_error_bound"] or 0.0) for entry in entries)
    return {"max_error_bound": bound, **({"max_error_estimate": max(estimates)} if estimates else {})}


def probability_metrics(outputs: np.ndarray, label: np.ndarray, loss: str) -> dict[str, float]:
    """Return metrics of logits: `log_loss`, the mean loss over points, and `mse` of the probabilities.

    Args:
        outputs: (p, c) logits.
        label: (p,) integer labels.
        loss: `cross_entropy` or `logistic`.
    """
    known = np.eye(outputs.shape[1])[label]
    if loss == "cross_entropy":
        values, made = -scipy.special.log_softmax(outputs, axis=1)[known > 0], scipy.special.softmax(outputs, axis=1)
    else:
        values, made = (np.logaddexp(0.0, outputs) - known * outputs).sum(axis=1), scipy.special.expit(outputs)
    return {"log_loss": float(values.mean()), "mse": float(np.mean((made - known) ** 2))}


def _entry_metrics(predictions: Predictions, entry: tuple[int, int, int]) -> dict[str, Any]:
    mean, target, label = predictions.mean[entry], predictions.target, predictions.label
    bound = predictions.error_bound[entry]
    finite = bool(np.isfinite(mean).all())
    loss, of_loss = predictions.attributes.get("loss", "squared"), {}
    if loss in ("cross_entropy", "logistic") and label is not None and finite:
        of_loss = probability_metrics(mean, label, loss)
    metrics: dict[str, Any] = {
        "mse": float(np.mean((mean - target) ** 2)) if finite and predictions.has_targets else None,
        **of_loss,
        "max_error_bound": float(bound.max()),
        "median_error_bound": float(np.median(bound)),
    }
    estimate = None if predictions.error_estimate is None else predictions.error_estimate[entry]
    if estimate is not None:
        middle = float(np.median(estimate))
        metrics |= {
            "max_error_estimate": float(estimate.max()),
            "median_error_estimate": middle,
            "typical_error": middle / SIGMAS,
        }
    if label is not None:
        accuracy = float(np.mean(mean.argmax(1) == label)) if finite else None
        metrics["accuracy"] = accuracy
        metrics["accuracy_standard_error"] = (
            None if accuracy is None else math.sqrt(accuracy * (1 - accuracy) / len(label))
        )
        metrics["certain"] = float(np.mean(decision_is_certain(mean, bound))) if finite else None
        if estimate is not None:
            certain = float(np.mean(decision_is_certain(mean, estimate))) if finite else None
            metrics["certain_by_estimate"] = certain
    elif not predictions.predicts_classes:
        metrics |= (
            regression_metrics(mean, target, predictions.class_names) if finite and predictions.has_targets else {}
        )
    if predictions.variance is None or not predictions.has_targets:
        return metrics
    variance = predictions.target_variance(entry)
    assert variance is not None
    names = ["nll", *COVERAGE_LEVELS, "calibration"] + (["ece"] if label is not None else [])
    variance = usable_variance(variance) if finite else None
    if variance is None:
        return metrics | dict.fromkeys(names)
    metrics["calibration"] = calibration_metrics(mean, target, variance)
    metrics["nll"] = gaussian_nll(mean, target, variance)
    scaled = np.abs(z_scores(mean, target, variance))
    for name, limit in COVERAGE_LEVELS.items():
        metrics[name] = float(np.mean(scaled <= limit))
    if label is not None:
        metrics["ece"] = expected_calibration_error(class_confidence(mean, variance), mean.argmax(1) == label)
    return metrics


def regression_metrics(mean: np.ndarray, target: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Return the errors of real targets, JSON-ready.

    Args:
        mean: (p, c) predicted means.
        target: (p, c) targets.
        names: c names of the targets.

    Returns:
        `rmse`, the root of the mean squared error over points and outputs, in the units of the targets. `r2`, the mean
        over outputs of 1 - (mean squared error) / (variance of the test targets); None if all test targets of an output
        are equal. If there are several outputs, also `targets` with `rmse`, `mae` and `r2` by name.
    """
    squared, spread = np.mean((mean - target) ** 2, axis=0), np.var(target, axis=0)
    r2 = [float(1 - error / var) if var > 0 else None for error, var in zip(squared, spread, strict=True)]
    made: dict[str, Any] = {
        "rmse": float(np.sqrt(squared.mean())),
        "r2": None if None in r2 else float(np.mean([one for one in r2 if one is not None])),
    }
    if len(names) > 1:
        absolute = np.mean(np.abs(mean - target), axis=0)
        made["targets"] = {
            name: {"rmse": float(np.sqrt(squared[k])), "mae": float(absolute[k]), "r2": r2[k]}
            for k, name in enumerate(names)
        }
    return made


def decision_is_certain(mean: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """Return whether the predicted class is the same for every error within the bounds.

    Args:
        mean: (p, c) predicted means.
        bound: (p, c) bounds, `|error| <= bound`.

    Returns:
        (p,) bool, true if the largest mean minus its bound exceeds every other mean plus its bound.
    """
    top = mean.argmax(1)[:, None]
    lowest = np.take_along_axis(mean - bound, top, 1)[:, 0]
    others = mean + bound
    np.put_along_axis(others, top, -np.inf, 1)
    return lowest > others.max(1)


def gaussian_nll(mean: np.ndarray, target: np.ndarray, variance: np.ndarray) -> float:
    """Return the mean over points and outputs of `-log N(target | mean, variance)`, in nats.

    Args:
        mean: (p, c) predicted means.
        target: (p, c) targets.
        variance: positive variances (p, c), or (p,) if the outputs share them.
    """
    variance = of_outputs(variance)
    squared = (mean - target) ** 2 / variance
    return float(0.5 * np.mean(squared + np.log(2 * np.pi * variance)))


def class_confidence(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Compute the probability that the output of the predicted class is the largest, for independent Gaussian outputs.

    Let m be the largest mean, s^2 the variance and Phi the normal distribution function. The probability is the
    expectation over z ~ N(0, 1) of prod_j Phi(z + (m - m_j) / s), computed by Gauss-Hermite quadrature.

    Args:
        mean: (p, c) predicted means.
        variance: (p,) positive variances.

    Returns:
        (p,) probabilities.
    """
    top = mean.argmax(1)
    return _largest(mean, variance, top)


def class_probabilities(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Compute the probability of every class that its output is the largest, as `class_confidence` does.

    Args:
        mean: (p, c) predicted means.
        variance: (p,) variances. If a variance is 0, the class of the largest mean is certain.

    Returns:
        (p, c) probabilities, whose rows sum to 1.
    """
    # The least deviation is the resolution of float64. Equal means then share their probability.
    least = np.square(np.finfo(np.float64).eps * np.maximum(np.abs(mean).max(axis=1), 1.0))
    classes = range(mean.shape[1])
    made = [_largest(mean, np.maximum(variance, least), np.full(len(mean), k)) for k in classes]
    probabilities = np.stack(made, axis=1)
    return probabilities / probabilities.sum(axis=1, keepdims=True)


def _largest(mean: np.ndarray, variance: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the probability that the output of each point's chosen class is the largest, (p,)."""
    z, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    weights = weights / weights.sum()
    made = np.empty(len(mean))
    for start in range(0, len(mean), _BLOCK):
        m = mean[start : start + _BLOCK]
        top = chosen[start : start + _BLOCK, None]
        gaps = (np.take_along_axis(m, top, 1) - m) / np.sqrt(variance[start : start + _BLOCK])[:, None]
        np.put_along_axis(gaps, top, np.inf, 1)
        made[start : start + _BLOCK] = np.exp(log_ndtr(gaps[:, :, None] + z).sum(1)) @ weights
    return made


def calibration_curve(confidence: np.ndarray, correct: np.ndarray, bins: int = ECE_BINS) -> np.ndarray:
    """Return mean confidence, accuracy and number of points per bin of equal width, (occupied bins, 3) float64."""
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    count = np.bincount(index, minlength=bins)
    occupied = count > 0
    mean_confidence = np.bincount(index, confidence, bins)[occupied] / count[occupied]
    accuracy = np.bincount(index, correct.astype(float), bins)[occupied] / count[occupied]
    return np.stack([mean_confidence, accuracy, count[occupied]], axis=1)


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Return the mean distance between confidence and accuracy over bins, weighted by points (arXiv:1706.04599)."""
    curve = calibration_curve(confidence, correct)
    return float(np.average(np.abs(curve[:, 0] - curve[:, 1]), weights=curve[:, 2]))


def write_metrics(metrics: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write `metrics.json` atomically. Infinity becomes the string `inf`, and NaN becomes null."""
    replace_text(path, json.dumps(json_ready(metrics), indent=2, allow_nan=False) + "\n")


def read_metrics(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read metrics as `compute_metrics` returned them. The strings `inf` and `-inf` become numbers again."""
    metrics = json.loads(Path(path).read_text(encoding="utf-8"))
    words = {"inf": math.inf, "-inf": -math.inf}
    metrics["entries"] = [
        {key: words.get(value, value) if isinstance(value, str) else value for key, value in entry.items()}
        for entry in metrics["entries"]
    ]
    return metrics
