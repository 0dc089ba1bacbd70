"""Series and images compared with scikit-learn on the same rows. Cross-validation chooses the ridge, time and kernel.

    python benchmarks/arrays.py --work DIR [--cifar10 FILE.npz] [--only series,cifar10,channels_first]

The script prints a table in Markdown. Each dataset takes one command of ntkpipe. The models of scikit-learn are support
vector machines and logistic regression. They get the same prepared numbers as flat rows, and three folds choose from a
small grid of settings. `series` is the example of docs/data.md. `channels_first` is CIFAR-10 in the layout of PyTorch.
FILE.npz holds x_train (n, 32, 32, 3), y_train, x_test and y_test.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

import ntkpipe as nk

WORDS = {
    "series": "data.layout=NLC kernel=cnn_gap kernel.filter=9 predict.times=[100,1000,inf]",
    "cifar10": "data.layout=NHWC data.train_size=1000 data.test_size=500 predict.times=[100,1e3,1e4,inf]",
    "channels_first": "data.layout=NCHW data.train_size=500 data.test_size=500 kernel=cnn_vec predict.times=[100,1e3,1e4,inf]",
}
COMMON = "data=npz data.folds=5 predict.ridges=[1e-3,1e-2] cluster=serial solver=eigh"


def series() -> dict[str, np.ndarray]:
    """Return series with bursts of one of two frequencies at random times, in noise."""
    rng, t = np.random.default_rng(0), np.arange(64)
    y = rng.integers(0, 2, 800)
    start, phase = rng.integers(0, 40, (800, 1)), rng.uniform(0, 6.28, (800, 1))
    burst = np.sin((0.6 + 0.5 * y[:, None]) * t + phase) * ((t >= start) & (t < start + 24))
    x = np.stack([burst, -burst], axis=2) + 0.7 * rng.normal(size=(800, 64, 2))
    names = np.array(["slow", "fast"])[y]
    return {"x_train": x[:600], "y_train": names[:600], "x_test": x[600:], "y_test": names[600:]}


def images(file: Path, *, channels_first: bool) -> dict[str, np.ndarray]:
    """Return the images of a file, in either layout."""
    with np.load(file) as archive:
        found = {name: archive[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    return {k: v.transpose(0, 3, 1, 2) if channels_first and k.startswith("x") else v for k, v in found.items()}


def ours(name: str, path: Path, work: Path) -> dict[str, Any]:
    """Run one command, and return its results for the kernel, time and ridge that cross-validation chose."""
    words = [
        *f"{COMMON} {WORDS[name]}".split(),
        f"data.path={path}",
        f"run_dir={work / name}",
        f"store.url={work / 'store'}",
    ]
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "ntkpipe", "run", *words], check=True, capture_output=True)
    seconds, metrics = time.monotonic() - began, nk.open_run(work / name).metrics()
    best = {kernel: record["best"] for kernel, record in metrics["cross_validation"].items()}
    kernel = max(best, key=lambda k: best[k]["accuracy"])
    wanted = (kernel, float(best[kernel]["time"]), best[kernel]["ridge"])
    entry = next(e for e in metrics["entries"] if (e["kernel"], float(e["time"]), e["ridge"]) == wanted)
    chosen = f"{kernel}, t={wanted[1]:g}, ridge {wanted[2]:g}"
    return {"seconds": seconds, "chosen": chosen, "test": entry["accuracy"]}


def theirs(path: Path, words: str) -> dict[str, Any]:
    """Return the results of scikit-learn's best simple model on the same prepared rows."""
    settings = dict(word.removeprefix("data.").split("=") for word in words.split() if word.startswith("data."))
    data = nk.load_dataset("npz", path, **settings)
    found, began = data.prepared(), time.monotonic()
    x, x_test = found.x_train[: data.n].reshape(data.n, -1), found.x_test[: data.p].reshape(data.p, -1)
    assert found.labels_train is not None
    assert found.labels_test is not None
    y, y_test = found.labels_train[: data.n], found.labels_test[: data.p]
    models = ((SVC(), {"C": [1, 10], "gamma": ["scale"]}), (LogisticRegression(max_iter=300), {"C": [1e-4, 1e-2]}))
    made = []
    for model, grid in models:
        search = GridSearchCV(model, grid, cv=3).fit(x, y)
        made.append((search.best_score_, type(model).__name__, search.score(x_test, y_test)))
    _, label, score = max(made)
    return {"seconds": time.monotonic() - began, "chosen": label, "test": score}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--only", default="series,cifar10,channels_first")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    print("| data | test accuracy | chosen | seconds | scikit-learn | chosen | seconds |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in options.only.split(","):
        if name != "series" and options.cifar10 is None:
            continue
        path = options.work / f"{name}.npz"
        arrays = series() if name == "series" else images(options.cifar10, channels_first=name == "channels_first")
        np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
        a, b = ours(name, path, options.work), theirs(path, WORDS[name])
        print(
            f"| {name} | {a['test']:.4g} | {a['chosen']} | {a['seconds']:.0f} | {b['test']:.4g} | {b['chosen']} | {b['seconds']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
