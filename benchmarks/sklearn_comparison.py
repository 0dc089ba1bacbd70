"""Estimators of ntkpipe compared with scikit-learn's on wine, breast cancer and diabetes: the table of docs/sklearn.md.

    python benchmarks/sklearn_comparison.py [--folds 5]

The usual settings of every model are searched on three folds of each training part. The score is that of the part that is
left out.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR

from ntkpipe.sklearn import NTKClassifier, NTKRegressor

_RIDGES, _DEPTHS = [1e-3, 1e-2, 1e-1, 1.0], [{"depth": 1}, {"depth": 3}]
_NETWORK = {"kernel": ["ntk", "nngp"], "ridge": _RIDGES, "architecture_args": _DEPTHS}
_MARGINS = {"C": [0.1, 1.0, 10.0, 100.0], "gamma": ["scale", 0.01, 0.1]}


def models(*, classes: bool) -> dict[str, Any]:
    """Return the compared models, by name."""
    if classes:
        return {
            "NTKClassifier": GridSearchCV(NTKClassifier("fcn"), _NETWORK, cv=3),
            "SVC": GridSearchCV(SVC(), _MARGINS, cv=3),
            "GaussianProcessClassifier": GaussianProcessClassifier(ConstantKernel() * RBF()),
        }
    return {
        "NTKRegressor": GridSearchCV(NTKRegressor("fcn"), {**_NETWORK, "ridge": [*_RIDGES, 10.0]}, cv=3),
        "SVR": GridSearchCV(SVR(), {**_MARGINS, "epsilon": [0.1, 10.0]}, cv=3),
        "GaussianProcessRegressor": GaussianProcessRegressor(
            ConstantKernel() * RBF(10.0) + WhiteKernel(), normalize_y=True, n_restarts_optimizer=1, random_state=0
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folds", type=int, default=5)
    folds = parser.parse_args().folds
    sets = {"wine": load_wine, "breast cancer": load_breast_cancer, "diabetes": load_diabetes}
    print("| data | model | score | seconds |\n|---|---|---|---|")
    for name, load in sets.items():
        x, y = load(return_X_y=True)
        classes = name != "diabetes"
        parts = (StratifiedKFold if classes else KFold)(folds, shuffle=True, random_state=0)
        for label, model in models(classes=classes).items():
            began = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of optimisers that stop at the edge of their range
                scores = cross_val_score(make_pipeline(StandardScaler(), model), x, y, cv=parts)
            error = scores.std(ddof=1) / math.sqrt(folds)
            what = "accuracy" if classes else "R^2"
            print(
                f"| {name} ({len(x)} x {x.shape[1]}) | `{label}` | {what} {np.mean(scores):.3f} +- {error:.3f} "
                f"| {time.perf_counter() - began:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
