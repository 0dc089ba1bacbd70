"""Test accuracy of five families of kernels against the number of training images, on real CIFAR-10 images.

    python benchmarks/kernel_accuracy.py --data cifar10_subset.npz [--figure docs/figures]

Images are standardised per channel and averaged over blocks of 2 x 2 pixels (to 16 x 16 pixels, which saves time), with
classes in turn. The script runs NTK and NNGP regression on one-hot labels at t = inf, with a ridge relative to the mean
of the diagonal. For every kernel and number of images n, it chooses the ridge of `RIDGES` with the best accuracy on the
last fifth of the n training images, when trained on the others. Then it trains on all n. Test images have no part in the
choice. Kernels are float32, and systems are solved in float64. The Gram matrix of the largest n contains those of all
others as leading blocks.

A pair of 16 x 16 images has 65,536 covariances in a network with pooling. 800 training and 500 test images are 0.72
million pairs per kernel, which take about 12 minutes for all kernels on two free cores. The standard error of an accuracy
near 50% on 500 images is 2.2%. Differences between kernels are more certain, because all kernels see the same images.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import scipy.linalg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter, StrMethodFormatter

from ntkpipe.config import DataConfig
from ntkpipe.data.dataset import load_dataset
from ntkpipe.kernels import zoo
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.report.style import GREY, PAGE_WIDTH, PALETTE, kernel_name, render

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_MARKERS = ("o", "s", "^", "D", "v")
_KERNELS = ("ntk", "nngp")


def families(shape: tuple[int, ...]) -> dict[str, list[dict[str, Any]]]:
    """Return the label and the layers of each kernel."""
    return {
        "FCN, 3 hidden layers": zoo.fcn(3),
        "CNN-Vec, 5 convolutions": zoo.cnn_vec(5),
        "CNN-GAP, 3 convolutions": zoo.cnn_gap(3),
        "Myrtle-5": zoo.myrtle(5, shape),
        "ResNet, 3 convolutions": zoo.resnet(1),
    }


def accuracy(k: np.ndarray, train: np.ndarray, test: np.ndarray, y: np.ndarray, ridge: float) -> float:
    """Return the accuracy on the images `test` after regression on the images `train`.

    Both are rows of one matrix `k`, whose columns are training images.
    """
    gram = k[np.ix_(train, train)].astype(np.float64)
    gram[np.diag_indices_from(gram)] += ridge * np.trace(gram) / len(gram)
    targets = np.eye(y.max() + 1)[y[train]] - 1 / (y.max() + 1)
    weights = scipy.linalg.solve(gram, targets, assume_a="pos", overwrite_a=True)
    return float(((k[np.ix_(test, train)] @ weights).argmax(1) == y[test]).mean())


def learning_curve(k: np.ndarray, y: np.ndarray, sizes: list[int], n_train: int) -> list[dict[str, float]]:
    """Return the accuracy and the chosen ridge per number of training images.

    Rows of `k` are training images, followed by test images.
    """
    made = []
    test = np.arange(n_train, len(k))
    for n in sizes:
        fit, held_out = np.arange(n - n // 5), np.arange(n - n // 5, n)
        # Of equals the largest: the least that the choice can be blamed for.
        ridge = max(RIDGES, key=lambda r: (accuracy(k, fit, held_out, y, r), r))
        made.append({"n": n, "ridge": ridge, "accuracy": accuracy(k, np.arange(n), test, y, ridge)})
    return made


def draw(results: dict[str, Any], shape: list[int], tested: int) -> Figure:
    """Draw accuracy against the number of training images, with a panel per kernel and a line per network."""
    figure = Figure(figsize=(PAGE_WIDTH, 3.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, kernel in zip(panels, _KERNELS, strict=True):
        for position, (label, result) in enumerate(results.items()):
            points = result[kernel]
            axes.plot(
                [p["n"] for p in points],
                [p["accuracy"] for p in points],
                color=PALETTE[position],
                marker=_MARKERS[position],
                label=label,
            )
        sizes = [p["n"] for p in next(iter(results.values()))[kernel]]
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(sizes))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel("training images")
        axes.set_title(kernel_name(kernel))
    panels[0].set_ylabel(f"accuracy on {tested} test images")
    low = panels[0].get_ylim()[0]
    error = math.sqrt(0.25 / tested)
    for axes in panels:
        # How far chance moves a point: one standard error up and down, beside the axis.
        at = axes.get_xlim()[1] / 1.12
        axes.errorbar([at], [low + 1.6 * error], [error], color=GREY, capsize=2.5, linewidth=1, fmt="none")
        axes.annotate(
            "± standard error", (at, low + 1.6 * error), (-6, 0), textcoords="offset points", ha="right", va="center",
            color=GREY, fontsize=7.5,
        )  # fmt: skip
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    figure.suptitle(f"CIFAR-10 at {shape[0]} x {shape[1]} pixels", x=0.01, ha="left", fontsize=9)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--sizes", type=int, nargs="+", default=[50, 100, 200, 400, 800], help="training images")
    parser.add_argument("--test-size", type=int, default=500)
    parser.add_argument("--downsample", type=int, default=2)
    parser.add_argument("--figure", type=Path, help="folder for kernel_accuracy.png")
    parser.add_argument("--json", type=Path, help="keep results here; kernels that it holds are not computed again")
    options = parser.parse_args()
    sizes = sorted(options.sizes)
    data = load_dataset(
        DataConfig(
            kind="npz",
            path=options.data,
            train_size=sizes[-1],
            test_size=options.test_size,
            balanced=True,
            downsample=options.downsample,
        ),
        dtype="float32",
    )
    n, p = data.n_train, data.n_test
    train, test = data.x_train[:n], data.x_test[:p]
    assert data.labels_train is not None
    assert data.labels_test is not None
    y = np.concatenate([data.labels_train[:n], data.labels_test[:p]])
    shape = train.shape[1:]
    settings = {"sizes": sizes, "test": p, "shape": list(shape)}
    results: dict[str, Any] = {}
    if options.json and options.json.exists():
        kept = json.loads(options.json.read_text())
        results = kept["results"] if kept["settings"] == settings else {}
    for label, spec in families(shape).items():
        if label not in results:
            start = time.perf_counter()
            architecture = Architecture.from_spec(spec)
            rows = architecture.prepare(train)
            blocks = architecture.tiles(rows, None)[0], architecture.tiles(architecture.prepare(test), rows)[0]
            seconds = time.perf_counter() - start
            curves = {
                kernel: learning_curve(np.concatenate([getattr(block, kernel) for block in blocks]), y, sizes, n)
                for kernel in _KERNELS
            }
            results[label] = {"seconds": seconds, **curves}
            if options.json:
                options.json.write_text(json.dumps({"settings": settings, "results": results}, indent=1))
        print(f"{label}: {results[label]['seconds']:.0f} s", flush=True)
    print(
        f"\naccuracy on {p} test images at {shape[0]} x {shape[1]} pixels (relative ridge, chosen on training images)\n"
    )
    print("| kernel | | " + " | ".join(f"n = {size:,}" for size in sizes) + " |")
    print("|---|---|" + "---|" * len(sizes))
    for kernel in _KERNELS:
        for label, result in results.items():
            cells = (f"{point['accuracy']:.1%} ({point['ridge']:.0e})".replace("e-0", "e-") for point in result[kernel])
            print(f"| {kernel_name(kernel)} | {label} | " + " | ".join(cells) + " |")
    if options.figure:
        matplotlib.use("agg")
        png, svg = render(lambda: draw(results, list(shape), p), options.figure, "kernel_accuracy")
        svg.unlink()
        print(f"\n{png}")


if __name__ == "__main__":
    main()
