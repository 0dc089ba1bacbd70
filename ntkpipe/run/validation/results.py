"""Evaluates ensembles: compares outputs with the predicted mean and variance, and measures the claims' exponents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ntkpipe.dynamics import gaussian_process as gp
from ntkpipe.finite import claims
from ntkpipe.finite.claims import Claim
from ntkpipe.linalg.eigh import Eigensystem
from ntkpipe.run.validation.stage import Setting


@dataclass(frozen=True, eq=False)
class OfWidth:
    """Results for m networks of one width and output scale, and for the infinite network, at S steps.

    Args:
        train: outputs of the networks on the training points, `(m, S, n, c)`.
        others: outputs on the test points and the path, `(m, S, q, c)`.
        linear_train: outputs of the linearisations on the training points, `(m, S, n, c)`; None without them.
        linear_others: outputs of the linearisations on the test points and the path; None without them.
        flow_train: outputs of the infinite network from each network's initial outputs, on the training points.
        flow_others: the same outputs on the test points and the path.
        mean: predicted mean on the test points and the path, `(S, q, c)`.
        mean_train: predicted mean on the training points, `(S, n, c)`.
        covariance: predicted covariance of each output, `(S, q, q)`.
        variance_train: predicted variance on the training points, `(S, n)`.
        deviation: relative distance of the initial kernel from the infinite one, `(m,)`.
        curvature: largest eigenvalue of the initial kernel over n c, `(m,)`.
        drift: relative change of the kernel in training, `(m, S)`.
        loss: training loss, `(m, S)`.
    """

    train: np.ndarray
    others: np.ndarray
    linear_train: np.ndarray | None
    linear_others: np.ndarray | None
    flow_train: np.ndarray
    flow_others: np.ndarray
    mean: np.ndarray
    mean_train: np.ndarray
    covariance: np.ndarray
    variance_train: np.ndarray
    deviation: np.ndarray
    curvature: np.ndarray
    drift: np.ndarray
    loss: np.ndarray

    @property
    def variance(self) -> np.ndarray:
        """Predicted variance on the test points and the path, `(S, q)`."""
        return np.einsum("sqq->sq", self.covariance)


@dataclass(frozen=True, eq=False)
class Validation:
    """All results of a validation.

    Args:
        setting: setting of the validation.
        of: results by width and output scale.
        claims: claims of the theory, with the measurements.
        rates: for large rates, the arrays `curvature0`, `loss`, `curvature`, `sparsity` and `peak` by width.
    """

    setting: Setting
    of: dict[tuple[int, float], OfWidth]
    claims: tuple[Claim, ...]
    rates: dict[int, dict[str, np.ndarray]]


def collect(setting: Setting) -> Validation:
    """Return the results of all chunks."""
    if setting.finite.rates:
        axes = {"curvature0": 0}
        return Validation(setting, {}, (), {w: setting.gathered("rates", w, axes) for w in setting.finite.widths})
    of: dict[tuple[int, float], OfWidth] = {}
    for width in setting.finite.widths:
        kernels = setting.gathered("kernels", width, {"deviation": 0, "curvature": 0})
        trained = setting.gathered("training", width, {})
        for s, scale in enumerate(setting.finite.output_scale):
            linear = (kernels["train"][s], kernels["points"][s]) if "train" in kernels else (None, None)
            train, others = trained["train"][s].astype(np.float64), trained["points"][s].astype(np.float64)
            predicted = _predict(setting, width, scale, train[:, 0], others[:, 0])
            of[width, scale] = OfWidth(
                train, others, *linear, *predicted, kernels["deviation"], kernels["curvature"], trained["drift"][s], trained["loss"][s]
            )  # fmt: skip
    return Validation(setting, of, tuple(_claims(setting, of)), {})


_Six = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _predict(setting: Setting, width: int, scale: float, own: np.ndarray, far: np.ndarray) -> _Six:
    """Return flows from the networks' initial outputs, and means and covariances over these, at every step."""
    reference, kind, y = setting.references[width], setting.filter[width], setting.points.y
    system = Eigensystem.of(reference.ntk)
    values, cutoff = system.shifted(0.0)
    # Initial outputs have the covariance alpha^2 K, or zero if they are centred.
    start = 0.0 if setting.finite.centred else scale**2
    nngp, cross, far_own = (start * k for k in (reference.nngp, reference.nngp_others, reference.nngp_own))
    n = len(y)
    eps = float(np.finfo(setting.points.x.dtype).eps)
    columns: list[list[np.ndarray]] = [[] for _ in range(6)]
    for step in setting.steps:
        weights = kind.weights(values, step, cutoff=cutoff)
        dual = (system.vectors * weights) @ system.vectors.T
        gain, gain_far = reference.ntk @ dual, reference.ntk_others @ dual
        left = y - own
        found = (
            own + np.einsum("ij,mjc->mic", gain, left),
            far + np.einsum("ij,mjc->mic", gain_far, left),
            gain_far @ y,
            gain @ y,
            gp.ntk_covariance(system, reference.ntk_others, nngp, cross, far_own, kind, step, 0.0, eps),
            np.einsum("ij,jk,ik->i", np.eye(n) - gain, nngp, np.eye(n) - gain),
        )
        for column, one in zip(columns, found, strict=True):
            column.append(one)
    a, b = (np.stack(column, axis=1) for column in columns[:2])
    c, d, e, f = (np.stack(column) for column in columns[2:])
    return a, b, c, d, e, f


def _distance(a: np.ndarray, b: np.ndarray | None, p: int) -> np.ndarray:
    """Return the root mean square difference over test points and outputs at the last step, `(m,)`."""
    assert b is not None
    return np.sqrt(np.square(a[:, -1, :p] - b[:, -1, :p]).mean(axis=(1, 2)))


def _claims(setting: Setting, of: dict[tuple[int, float], OfWidth]) -> list[Claim]:
    finite, p = setting.finite, len(setting.points.test)
    if finite.is_lazy_study and len(finite.widths) == 1:
        return _lazy(setting, of)
    # The output scale nearest to 1 is plain training.
    scale = min(finite.output_scale, key=lambda one: abs(np.log(one)))
    at = {float(width): of[width, scale] for width in sorted(finite.widths)}
    seed = finite.seed

    made = [
        claims.root_mean_square(
            "kernel",
            "initial kernel less the infinite one",
            -0.5,
            {w: one.deviation for w, one in at.items()},
            seed=seed,
        )
    ]
    all_layers = finite.trained == "network"
    if all_layers and finite.in_theorem:
        made.append(
            claims.root_mean_square(
                "drift",
                "movement of the kernel in training",
                -1.0,
                {w: one.drift[:, -1] for w, one in at.items()},
                seed=seed,
            )
        )
        if all(one.linear_others is not None for one in at.values()):
            far = {w: _distance(one.others, one.linear_others, p) for w, one in at.items()}
            made.append(
                claims.root_mean_square("linearisation", "network less its linearisation", -1.0, far, seed=seed)
            )
    if finite.in_theorem:
        far = {w: _distance(one.others, one.flow_others, p) for w, one in at.items()}
        made.append(
            claims.root_mean_square("flow", "network less the infinite flow from its start", -0.5, far, seed=seed)
        )
        off = {w: (one.others - one.flow_others)[:, -1, :p].reshape(len(one.others), -1) for w, one in at.items()}
        made.append(claims.bias_of_mean("mean of the networks less the predicted mean", off, seed=seed))
        if not finite.centred:
            outputs = {w: one.others[:, -1, :p].reshape(len(one.others), -1) for w, one in at.items()}
            c = setting.points.y.shape[1]
            predicted = {w: np.repeat(one.variance[-1, :p], c) for w, one in at.items()}
            made.append(
                claims.bias_of_variance(
                    "variance of the networks / predicted variance, less 1", outputs, predicted, seed=seed
                )
            )
    if finite.is_lazy_study:
        made += _lazy(setting, of)
    return made


def _lazy(setting: Setting, of: dict[tuple[int, float], OfWidth]) -> list[Claim]:
    made, p = [], len(setting.points.test)
    for width in sorted(setting.finite.widths):
        at = {scale: of[width, scale] for scale in sorted(setting.finite.output_scale)}
        if all(one.linear_others is not None for one in at.values()):
            far = {scale: _distance(one.others, one.linear_others, p) for scale, one in at.items()}
            text = f"width {width}: network less its linearisation"
            made.append(
                claims.root_mean_square(
                    f"lazy_{width}", text, -1.0, far, against="output scale", seed=setting.finite.seed
                )
            )
        drift = {scale: one.drift[:, -1] for scale, one in at.items()}
        text = f"width {width}: movement of the kernel"
        made.append(
            claims.root_mean_square(
                f"lazy_drift_{width}", text, -1.0, drift, against="output scale", seed=setting.finite.seed
            )
        )
    return made
