"""Results of a validation in the run's folder, `validation.zarr` and `validation.json`, and its printed lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ntkpipe.finite.claims import as_record
from ntkpipe.predictions.ensembles import write_ensembles
from ntkpipe.run.validation.phases import lines_of_phases, phases_of
from ntkpipe.run.validation.results import OfWidth, Validation
from ntkpipe.run.validation.setting import momentum_of
from ntkpipe.run.validation.stage import settings_of
from ntkpipe.storage.plain import json_ready
from ntkpipe.storage.replace import replace_text


def write_validation(made: Validation, folder: Path) -> list[Path]:
    """Write `validation.json` and `validation.zarr`.

    Args:
        made: results of the validation.
        folder: folder of the validation, within the run's folder.

    Returns:
        The paths of the JSON file and of the files of the Zarr group.
    """
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "validation.json", json.dumps(json_ready(record_of(made)), indent=1, allow_nan=False) + "\n")
    write_ensembles(_arrays(made), json_ready(settings_of(made.setting)), folder / "validation.zarr")
    return [folder / "validation.json", *sorted(f for f in (folder / "validation.zarr").rglob("*") if f.is_file())]


def record_of(made: Validation) -> dict[str, Any]:
    """Return the results as plain values: settings, claims, and measurements during training by width."""
    record: dict[str, Any] = {"version": 1, "settings": settings_of(made.setting), "labelled": labels_of(made)}
    if made.rates:
        return record | {"rates": phases_of(made)}
    return record | {
        "claims": [as_record(one) for one in made.claims],
        "networks": [
            {"width": width, "output_scale": scale, **_of_width(made, width, one)}
            for (width, scale), one in made.of.items()
        ],
    }


def labels_of(made: Validation) -> list[str]:
    """Return notes on settings outside the theorem's assumptions."""
    finite, found = made.setting.finite, []
    if finite.training == "sgd":
        found.append("outside the theorem: stochastic gradient descent")
    if finite.loss == "cross_entropy":
        found.append("outside the theorem: cross-entropy; linearisations and claims on squared loss are left out")
    if finite.rates:
        found.append("outside the theorem: rates above 2 / curvature")
    return found


def curves_of(made: Validation, one: OfWidth) -> dict[str, dict[str, list[float]]]:
    """Return the losses and accuracies at each step.

    They are those of the networks, of their linearisations, and of the infinite network from the networks' initial
    outputs.
    """
    points = made.setting.points
    p = len(points.test)
    off = {"finite": (one.train, one.others), "infinite": (one.flow_train, one.flow_others)}
    if one.linear_train is not None and one.linear_others is not None:
        off["linearised"] = (one.linear_train, one.linear_others)
    return {
        name: {
            "train_loss": _losses(train, points.y),
            "test_loss": _losses(others[:, :, :p], points.test_target),
            **_accuracies("train", train, points.labels),
            **_accuracies("test", others[:, :, :p], points.test_labels),
        }
        for name, (train, others) in off.items()
    }


def _of_width(made: Validation, width: int, one: OfWidth) -> dict[str, Any]:
    rate, p = made.setting.references[width].rate, len(made.setting.points.test)
    shares = rate * one.curvature
    return {
        "rate": rate,
        "rate_times_curvature": {"mean": float(shares.mean()), "largest": float(shares.max())},
        "kernel_deviation": float(np.sqrt(np.square(one.deviation).mean())),
        "kernel_drift": np.sqrt(np.square(one.drift).mean(axis=0)).tolist(),
        "variance_ratio": _variance_ratio(one, p),
        "curves": curves_of(made, one),
    }


def _losses(f: np.ndarray, y: np.ndarray) -> list[float]:
    """Return half the squared error at each step, as a mean over networks, points and outputs."""
    return (0.5 * np.square(f - y).mean(axis=(0, 2, 3))).tolist()


def _accuracies(name: str, f: np.ndarray, labels: np.ndarray | None) -> dict[str, list[float]]:
    return {} if labels is None else {f"{name}_accuracy": (f.argmax(axis=3) == labels).mean(axis=(0, 2)).tolist()}


def _variance_ratio(one: OfWidth, p: int) -> list[float] | None:
    """Return the ratio of the networks' variance to the predicted one at each step, averaged over points and outputs."""
    predicted = one.variance[:, :p, None]
    if not (predicted > 0).all():
        return None
    return (one.others[:, :, :p].var(axis=0, ddof=1) / predicted).mean(axis=(1, 2)).tolist()


def _arrays(made: Validation) -> dict[str, tuple[np.ndarray, tuple[str, ...]]]:
    setting = made.setting
    widths = sorted(setting.finite.widths)
    coordinates: dict[str, tuple[np.ndarray, tuple[str, ...]]] = {
        "width": (np.array(widths, np.int64), ("width",)),
        "time": (np.array(setting.steps, np.float64), ("time",)),
    }
    if made.rates:
        names = ("loss", "curvature", "sparsity")
        dims = ("rate", "network", "width", "time")
        of = {
            name: (np.stack([made.rates[w][name] for w in widths], axis=2).astype(np.float64), dims) for name in names
        }
        return {**coordinates, "rate": (np.array(setting.finite.rates), ("rate",)), **of}
    scales = sorted(setting.finite.output_scale)
    p = len(setting.points.test)
    several = len(scales) > 1

    def joined(get: Any, dims: tuple[str, ...], networks: bool) -> tuple[np.ndarray, tuple[str, ...]]:
        axis = 1 if networks else 0
        by_scale = [np.stack([get(made.of[w, s]) for w in widths], axis=axis) for s in scales]
        return (np.stack(by_scale), ("output_scale", *dims)) if several else (by_scale[0], dims)

    per_network = ("network", "width", "time", "test", "output")
    found = {
        "outputs": joined(lambda one: one.others[:, :, :p], per_network, True),
        "infinite_flow": joined(lambda one: one.flow_others[:, :, :p], per_network, True),
        "mean": joined(lambda one: one.mean[:, :p], per_network[1:], False),
        "variance": joined(lambda one: one.variance[:, :p], per_network[1:4], False),
        "covariance": joined(lambda one: one.covariance[:, :p, :p], (*per_network[1:4], "test_other"), False),
        "kernel_drift": joined(lambda one: one.drift, per_network[:3], True),
        "kernel_deviation": joined(lambda one: one.deviation, per_network[:2], True),
        "train_loss": joined(lambda one: one.loss, per_network[:3], True),
    }
    if all(one.linear_others is not None for one in made.of.values()):
        found["linearised"] = joined(lambda one: one.linear_others[:, :, :p], per_network, True)
    scaled = {"output_scale": (np.array(scales), ("output_scale",))} if several else {}
    return {**coordinates, **scaled, **{name: (np.asarray(a, np.float64), d) for name, (a, d) in found.items()}}


def lines_of(made: Validation) -> list[str]:
    """Return the lines that are printed."""
    setting = made.setting
    lines = [f"note     {text}" for text in labels_of(made)]
    if made.rates:
        return [*lines, *lines_of_phases(made)]
    limit = 2.0 * (1.0 + momentum_of(setting.config))
    last = setting.steps[-1]
    several = len(setting.finite.output_scale) > 1
    lines.append(
        f"{setting.finite.networks} networks of each width, {last:,} steps; relative distances of kernels, root mean squares"
    )
    head = [
        "width",
        *(["alpha"] if several else []),
        "rate x curvature",
        "kernel",
        "its movement",
        "variance/predicted",
    ]
    rows = [head]
    for (width, scale), one in sorted(made.of.items()):
        ratio = _variance_ratio(one, len(setting.points.test))
        shares = setting.references[width].rate * one.curvature
        rows.append([
            f"{width}",
            *([f"{scale:g}"] if several else []),
            f"{shares.max():.2f} of {limit:.2g}",
            f"{np.sqrt(np.square(one.deviation).mean()):.3f}",
            f"{np.sqrt(np.square(one.drift[:, -1]).mean()):.4f}",
            "-" if ratio is None else f"{ratio[-1]:.3f}",
        ])  # fmt: skip
    columns = [max(len(row[k]) for row in rows) for k in range(len(head))]
    lines += ["  ".join(f"{cell:>{n}}" for cell, n in zip(row, columns, strict=True)) for row in rows]
    lines += [one.line() for one in made.claims]
    return lines
