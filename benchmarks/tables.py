"""Tables compared with scikit-learn on the same rows. Cross-validation chooses the ridge, time and kernel.

    python benchmarks/tables.py --work DIR [--only diabetes,wine,breast_cancer,houses]

The script prints a table in Markdown. Each dataset takes one command of ntkpipe. The models of scikit-learn are ridge
regression or logistic regression, support vector machines, and for less than 2,000 rows a Gaussian process. Five folds
of the same training rows choose each from a small grid. `houses` has the shape of California housing (20,640 rows of
eight columns) and is generated from a seed; 1,500 rows train and 500 test.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR

import ntkpipe as nk

COMMON = (
    "data=table data.target=target data.folds=5 cluster=serial solver=eigh predict.covariance=diagonal predict.times=[10,100,1000,inf] "
    "predict.ridges=[1e-3,1e-2,1e-1,1] predict.learning_rate=0.5"
)
OWN = {"houses": "data.train_size=1500 data.test_size=500"}


def houses(n: int = 20_640) -> pd.DataFrame:
    """Return districts with incomes, ages, rooms and places, and prices that depend on them.

    The noise of the prices is a third of their standard deviation.
    """
    rng = np.random.default_rng(0)
    income, age = rng.lognormal(1.2, 0.5, n), rng.integers(1, 53, n)
    rooms, people = 3 + 0.6 * income + rng.gamma(2, 0.5, n), rng.gamma(9, 0.33, n)
    bedrooms, population = 0.2 * rooms + rng.normal(0, 0.05, n), rng.lognormal(7, 0.7, n)
    latitude, longitude = rng.uniform(32.5, 42, n), rng.uniform(-124, -114, n)
    coast = np.exp(-np.abs(longitude + 124 - 0.9 * (42 - latitude)) / 1.5)
    price = 0.45 * income + 1.2 * coast * np.sqrt(income) + 0.01 * age - 0.25 * people + 0.3 * np.sin(latitude)
    target = np.round(price + price.std() / 3 * rng.normal(size=n), 4)
    columns = {"income": income, "age": age, "rooms": rooms, "bedrooms": bedrooms, "population": population}
    return pd.DataFrame(columns | {"people": people, "latitude": latitude, "longitude": longitude, "target": target})


def tables() -> dict[str, Any]:
    """Name -> what makes the table."""

    def classes(load: Any) -> pd.DataFrame:
        found = load(as_frame=True)
        return found.data.assign(target=found.target_names[found.target])

    return {
        "diabetes": lambda: load_diabetes(as_frame=True).frame,
        "wine": lambda: classes(load_wine),
        "breast_cancer": lambda: classes(load_breast_cancer),
        "houses": houses,
    }


def ours(name: str, path: Path, work: Path, regression: bool) -> dict[str, Any]:
    """Run one command, and return its results for the kernel, time and ridge that cross-validation chose."""
    words = f"{COMMON} {OWN.get(name, '')} {'predict.noise=held_out' if regression else ''}".split()
    words += [f"data.path={path}", f"run_dir={work / name}", f"store.url={work / 'store'}"]
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "ntkpipe", "run", *words], check=True, capture_output=True, env=os.environ)
    seconds = time.monotonic() - began
    metrics = nk.open_run(work / name).metrics()
    measure, sign = ("rmse", 1) if regression else ("accuracy", -1)
    best = {k: record["best"] for k, record in metrics["cross_validation"].items()}
    kernel = min(best, key=lambda k: sign * best[k][measure])
    chosen = best[kernel]
    wanted = (kernel, float(chosen["time"]), chosen["ridge"])
    entry = next(e for e in metrics["entries"] if (e["kernel"], e["time"], e["ridge"]) == wanted)
    return {
        "seconds": seconds,
        "chosen": f"{kernel}, t={float(chosen['time']):g}, ridge {chosen['ridge']:g}",
        "test": entry[measure],
        "coverage_90": entry.get("coverage_90"),
        "mean": metrics.get("of_the_mean", {}).get("rmse"),
    }


def theirs(name: str, path: Path, regression: bool) -> dict[str, Any]:
    """Return the results of scikit-learn's best simple model on the same rows."""
    config = {"train_size": 1500, "test_size": 500} if name in OWN else {}
    data = nk.load_dataset("table", path=path, target="target", **config)
    rows, table = data.prepared(), pd.read_csv(path)
    x, y = table.drop(columns="target").to_numpy(float), table["target"].to_numpy()
    train, test = rows.train_index[: data.n], rows.test_index[: data.p]
    powers = 10.0 ** np.arange(-2, 3)
    models: dict[str, tuple[Any, dict[str, Any]]]
    if regression:
        models = {
            "Ridge": (Ridge(), {"ridge__alpha": powers}),
            "SVR": (SVR(), {"svr__C": y[train].std() * powers, "svr__gamma": [0.01, 0.03, 0.1]}),
        }
        if len(train) < 2000:
            kernel = 1.0 * RBF(3.0) + WhiteKernel(0.5)
            models["GP"] = (GaussianProcessRegressor(kernel, normalize_y=True), {})
    else:
        models = {
            "LogisticRegression": (LogisticRegression(max_iter=2000), {"logisticregression__C": powers}),
            "SVC": (SVC(), {"svc__C": powers, "svc__gamma": [0.01, 0.03, 0.1]}),
        }
    scoring, made = "neg_root_mean_squared_error" if regression else "accuracy", []
    began = time.monotonic()
    for label, (model, grid) in models.items():
        search = GridSearchCV(make_pipeline(StandardScaler(), model), grid, scoring=scoring, cv=5)
        made.append((search.fit(x[train], y[train]).best_score_, label, abs(search.score(x[test], y[test]))))
    _, label, score = max(made)
    return {"seconds": time.monotonic() - began, "chosen": label, "test": score}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", default="diabetes,wine,breast_cancer,houses")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    print("| table | measure | ntkpipe | chosen | in 90% intervals | seconds | scikit-learn | chosen | seconds |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for name in options.only.split(","):
        table = tables()[name]()
        path = options.work / f"{name}.csv"
        table.to_csv(path, index=False)
        regression = table["target"].dtype.kind == "f"
        a, b = ours(name, path, options.work, regression), theirs(name, path, regression)
        measure = f"test RMSE (mean: {a['mean']:.4g})" if regression else "test accuracy"
        covered = "" if a["coverage_90"] is None or not regression else f"{a['coverage_90']:.1%}"
        print(
            f"| {name} | {measure} | {a['test']:.4g} | {a['chosen']} | {covered} | {a['seconds']:.0f} | {b['test']:.4g} | {b['chosen']} | "
            f"{b['seconds']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
