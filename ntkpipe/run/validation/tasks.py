"""Tasks of `ntkpipe validate`: kernels and linearisations of some networks, their training, and large learning rates.

Each task returns its arrays, and the caller stores them. Repeating a task gives the same result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ntkpipe.finite.ensemble import Training, draw_members, largest_curvature, member_seed, train_members
from ntkpipe.finite.linearised import member_kernel, trace_kernel, train_linearised
from ntkpipe.run.validation.setting import Chunk
from ntkpipe.tasks import stopping

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Job:
    """Arguments shared by the tasks of one width.

    Args:
        spec: layers of the networks.
        x: training points, `(n, ...)`.
        y: targets, `(n, c)`.
        others: other points, `(q, ...)`.
        reference: training kernel T of the infinite network, `(n, n)`.
        training: training settings of every network.
        scales: output scales.
        seed: seed of the networks.
        initialiser: initialiser of their weights.
        linearised: whether linearisations are trained.
    """

    spec: list[dict[str, Any]]
    x: np.ndarray
    y: np.ndarray
    others: np.ndarray
    reference: np.ndarray
    training: Training
    scales: tuple[float, ...]
    seed: int
    initialiser: str
    linearised: bool

    def draw(self, chunk: Chunk) -> Any:
        """Return the initial weights of the chunk's networks, stacked."""
        seeds = [member_seed(self.seed, chunk.width, member) for member in range(chunk.first, chunk.stop)]
        return draw_members(self.spec, self.x.shape[1:], seeds, initialiser=self.initialiser, dtype=self.x.dtype)


def kernels_task(job: Job, chunk: Chunk) -> Arrays:
    """Compute the distance and largest eigenvalue of every network's kernel, and the outputs of its linearisation.

    Returns:
        `deviation` (m,), relative to the infinite kernel, and `curvature` (m,). If linearisations are trained, also
        `train` (scales, m, steps, n, c) and `points` (scales, m, steps, q, c).
    """
    members, readout = job.draw(chunk), job.training.readout
    norm = float(np.linalg.norm(job.reference))
    deviation, curvature, linear = [], [], []
    for k in range(chunk.stop - chunk.first):
        stopping.check()
        weights = one_of(members, k)
        if not job.linearised:
            own = trace_kernel(job.spec, weights, job.x, readout=readout)
            deviation.append(float(np.linalg.norm(own - job.reference)) / norm)
            continue
        kernel = member_kernel(job.spec, weights, job.x, job.others, readout=readout)
        deviation.append(_distance(kernel.train, job.reference) / norm)
        curvature.append(kernel.largest)
        linear.append([train_linearised(kernel, job.y, _scaled(job.training, scale)) for scale in job.scales])
    if not job.linearised:
        if readout:
            raise ValueError("linearisation of a readout is exact and free: train it")
        return {
            "deviation": np.array(deviation),
            "curvature": largest_curvature(job.spec, members, job.x).astype(np.float64),
        }
    return {
        "deviation": np.array(deviation),
        "curvature": np.array(curvature),
        "train": np.stack([[one[s].train for one in linear] for s in range(len(job.scales))]),
        "points": np.stack([[one[s].points for one in linear] for s in range(len(job.scales))]),
    }


def training_task(job: Job, chunk: Chunk) -> Arrays:
    """Train every network at every output scale, and record its outputs, its loss and the change of its kernel.

    Returns:
        `train` (scales, m, steps, n, c), `points` (scales, m, steps, q, c), `loss` (scales, m, steps) and the relative
        `drift` (scales, m, steps).
    """
    members, made = job.draw(chunk), []
    for scale in job.scales:
        first: list[np.ndarray] = []
        drift: list[list[float]] = []

        def look(step: int, weights: Any, first: list[np.ndarray] = first, drift: list[list[float]] = drift) -> None:
            stopping.check()
            kernels = [
                trace_kernel(job.spec, one_of(weights, k), job.x, readout=job.training.readout)
                for k in range(chunk.stop - chunk.first)
            ]
            if step == 0:
                first.extend(kernels)
            drift.append(
                [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(kernels, first, strict=True)]
            )

        training = _scaled(job.training, scale)
        trained = train_members(job.spec, members, job.x, job.y, job.others, training, look=look, first=chunk.first)
        made.append((trained.train, trained.points, trained.loss, np.array(drift).T))
    names = ("train", "points", "loss", "drift")
    return {name: np.stack(column) for name, column in zip(names, zip(*made, strict=True), strict=True)}


def rates_task(job: Job, chunk: Chunk, rates: tuple[float, ...]) -> Arrays:
    """Train every network at rates in units of 1 / (its initial curvature).

    Returns:
        `curvature0` (m,), and `loss`, `curvature`, `sparsity` (rates, m, steps) and `peak` (rates, m).
    """
    members = job.draw(chunk)
    start = largest_curvature(job.spec, members, job.x).astype(np.float64)
    made = []
    for rate in rates:
        stopping.check()
        trained = train_members(
            job.spec,
            members,
            job.x,
            job.y,
            job.others[:1],
            job.training,
            rates=rate / start,
            curvature=True,
            first=chunk.first,
        )
        made.append((trained.loss, trained.curvature, trained.sparsity, trained.peak))
    names = ("loss", "curvature", "sparsity", "peak")
    found = {name: np.stack(column) for name, column in zip(names, zip(*made, strict=True), strict=True)}
    return {"curvature0": start, **found}


def one_of(members: Any, k: int) -> list[tuple[Any, Any]]:
    """Return the weights of one network of a chunk."""
    made = []
    for w, b in members:
        one = tuple(np.asarray(a[k]) for a in w) if isinstance(w, tuple) else np.asarray(w[k])
        made.append((one, None if b is None else np.asarray(b[k])))
    return made


def _scaled(training: Training, scale: float) -> Training:
    return replace(training, output_scale=scale)


def _distance(kernel: np.ndarray, reference: np.ndarray) -> float:
    """Return the distance of a kernel of all output pairs from the infinite one, as a root mean square over outputs."""
    n = len(reference)
    if len(kernel) == n:
        return float(np.linalg.norm(kernel - reference))
    c = len(kernel) // n
    blocks = kernel.reshape(n, c, n, c).astype(np.float64)
    own = np.einsum("iaja->aij", blocks) - reference
    all_pairs = float(np.square(blocks).sum()) - float(np.square(np.einsum("iaja->aij", blocks)).sum())
    return float(np.sqrt((np.square(own).sum() + all_pairs) / c))
