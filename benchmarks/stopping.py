"""Tests of the stopping rule of block Lanczos on random problems, which are also solved densely.

    python benchmarks/stopping.py [--problems 1000] [--seed 0] [--first K] [--seconds S] [--stop bound] [--record PATH.jsonl]
    python benchmarks/stopping.py --table PATH.jsonl ...

With `--record` every problem adds a line to a file. Problems that are already in the file are left out, and no problem
begins after `--seconds`, so the command may be repeated until all are done. `--table` summarises such files.

A problem has a kernel (of random or clustered points, or with a prescribed spectrum), targets, ridges, times, and a
tolerance. Lanczos continues to the end. At every step, the means of all test points are compared with those of a full
eigendecomposition of the same matrix. The rule of `solver.stop` uses 64 test points. The results are:

early      the share of predictions whose error exceeds the target when the rule stops, and of problems with any of them
late       passes after the first one from which no prediction ever exceeds the target again

The target is the tolerance, or a tenth of the rounding error if that is larger. The exit code is 1 if more than 1% of the
predictions were early, or if the median problem was late by more than 10% of its passes and two.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from ntkpipe.dynamics.enough import EstimateRule, OtherErrors
from ntkpipe.dynamics.estimates import RowFacts, row_scales
from ntkpipe.dynamics.filters import SpectralFilter, make_filter
from ntkpipe.dynamics.krylov import KrylovSolution
from ntkpipe.dynamics.movement import TestMeans
from ntkpipe.dynamics.sampling import RowSample, matrix_noise, sample_indices
from ntkpipe.dynamics.stopping import StopRule, stop_rule
from ntkpipe.linalg.lanczos import LanczosResult, block_lanczos
from ntkpipe.linalg.operator import DenseOperator

KINDS = ("points", "clusters", "power", "geometric", "steps")
TOLERANCES = (1e-2, 1e-4, 1e-6)
LOOKED_AT, SAMPLED = 64, 32


@dataclass(frozen=True)
class Drawn:
    """A random problem; `stored` and `stored_test` are rounded if tiles are in float32."""

    kind: str
    train: np.ndarray
    stored: np.ndarray
    stored_test: np.ndarray
    diagonal: np.ndarray
    targets: np.ndarray
    filter: SpectralFilter
    times: tuple[float, ...]
    ridges: tuple[float, ...]
    tolerance: float


def draw(rng: np.random.Generator) -> Drawn:
    """Return a random problem."""
    kind = str(rng.choice(KINDS))
    n, p, c = int(rng.integers(60, 280)), int(rng.integers(10, 160)), int(rng.choice([1, 2, 3, 5, 10, 40]))
    gram = _of_points(rng, n + p, kind) if kind in ("points", "clusters") else _of_spectrum(rng, n, p, kind)
    stored = gram.astype(np.float32).astype(np.float64) if rng.random() < 0.4 else gram
    if rng.random() < 0.6:
        targets = np.eye(max(c, 2))[rng.integers(0, max(c, 2), n)]
        targets -= targets.mean(axis=0)
    else:
        targets = rng.standard_normal((n, c)) * 10.0 ** rng.uniform(-2, 2, c)
    mean = float(np.mean(np.diagonal(gram)[:n]))
    ridges = {0.0} if rng.random() < 0.6 else {mean * 10.0 ** rng.uniform(-8, 0)}
    if rng.random() < 0.3:
        ridges.add(mean * 10.0 ** rng.uniform(-4, 0))
    times = {math.inf} if rng.random() < 0.7 else set()
    while not times or rng.random() < 0.35:
        times.add(float(f"{n * targets.shape[1] / mean * 10.0 ** rng.uniform(-1, 6):.3g}"))
    flow = make_filter("gradient_flow", n, targets.shape[1])
    return Drawn(
        kind=kind,
        train=gram[:n, :n],
        stored=stored[:n, :n],
        stored_test=stored[n:, :n],
        diagonal=np.diagonal(gram)[n:],
        targets=targets,
        filter=flow,
        times=tuple(sorted(times)),
        ridges=tuple(sorted(ridges)),
        tolerance=float(rng.choice(TOLERANCES)),
    )


def _of_points(rng: np.random.Generator, m: int, kind: str) -> np.ndarray:
    """Return a kernel of wide ReLU networks with up to six layers."""
    d = int(rng.choice([3, 10, 30, 100]))
    x = rng.standard_normal((m, d))
    if kind == "clusters":
        x = 3.0 * rng.standard_normal((int(rng.integers(2, 8)), d))[rng.integers(0, 2, m)] + x * 10.0 ** rng.uniform(
            -2, 0
        )
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    nngp = x @ x.T
    ntk = nngp.copy()
    for _ in range(int(rng.integers(1, 7))):
        cosine = np.clip(nngp, -1.0, 1.0)
        angle = np.arccos(cosine)
        nngp = (np.sqrt(1 - cosine**2) + (math.pi - angle) * cosine) / math.pi
        ntk = nngp + ntk * (math.pi - angle) / math.pi
    gram = nngp if rng.random() < 0.5 else ntk
    return (gram + gram.T) / 2


def _of_spectrum(rng: np.random.Generator, n: int, p: int, kind: str) -> np.ndarray:
    """Return a kernel with a prescribed spectrum; test points mix features of training points with their own."""
    low = 10.0 ** -rng.uniform(1, 9)
    if kind == "power":
        values = np.maximum(np.arange(1.0, n + 1) ** -rng.uniform(0.5, 3), low)
    elif kind == "geometric":
        values = np.geomspace(1.0, low, n)
    else:
        values = rng.choice(np.geomspace(1.0, low, int(rng.integers(3, 9))), n) * rng.uniform(0.9, 1.1, n)
    q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    root = q * np.sqrt(values)
    own = 10.0 ** rng.uniform(-2, 0) * rng.standard_normal((p, n)) * np.sqrt(values)
    features = np.concatenate([root, rng.standard_normal((p, n)) / math.sqrt(n) @ root + own / math.sqrt(n)])
    return features @ features.T


@dataclass
class Watched:
    """The errors of every step, with the decision of the rule.

    Attributes:
        errors: errors of every step, `(T, R, p, c)`, in units of the targets' scales.
        stopped: step at which the rule stopped; None if the space became invariant before.
        target: target at that step, `(T, R, 1, 1 or c)`.
    """

    drawn: Drawn
    rule: StopRule | EstimateRule
    exact: np.ndarray
    scales: np.ndarray
    noise: float
    errors: list[np.ndarray] = field(default_factory=list)
    stopped: int | None = None
    target: np.ndarray | float = 0.0
    next: int = 1

    def __call__(self, result: LanczosResult) -> bool:
        step, drawn = len(result.block_sizes), self.drawn
        space = KrylovSolution.from_lanczos(result, self.noise)
        self.errors.append(np.abs(means(space, drawn) - self.exact) / self.scales)
        if self.stopped is None and step == self.next:
            self.next = self.rule.check_every(step)
            if self.rule(result):
                self.stopped = step
                allowed = self.rule.allowed if isinstance(self.rule, EstimateRule) else drawn.tolerance
                self.target = allowed.max(axis=2, keepdims=True) if isinstance(allowed, np.ndarray) else allowed
        return False


def means(space: KrylovSolution, drawn: Drawn) -> np.ndarray:
    """Return the means of all test points, `(T, R, p, c)`."""
    along = drawn.stored_test @ space.basis.T
    return along @ space.coordinates(drawn.filter, drawn.times, drawn.ridges)


def tried(drawn: Drawn, stop: str, most: int = 400) -> Watched:
    """Run Lanczos to the end, and record the errors of every step."""
    n = len(drawn.train)
    scales = np.abs(drawn.targets).max(axis=0)
    scales = np.where(scales > 0, scales, 1.0)
    rows = sample_indices(n, SAMPLED)
    stored, exact = drawn.stored[rows], drawn.train[rows]
    noise = matrix_noise(stored - exact, n)
    diagonal = float(drawn.diagonal.max())
    rule: StopRule | EstimateRule = stop_rule(
        drawn.filter,
        drawn.times,
        drawn.ridges,
        largest_test_diagonal=diagonal,
        tolerance=drawn.tolerance,
        scales=scales,
        noise=noise,
    )
    if stop == "estimate":
        own = np.diagonal(drawn.train)
        looked = np.unique(np.linspace(0, len(drawn.stored_test) - 1, LOOKED_AT).round().astype(int))
        facts = RowFacts(row_scales(own)[rows], float(own.mean()), n, noise)
        spread = float(np.sqrt(np.mean((stored - exact) ** 2 / own[rows, None])))
        others = OtherErrors(RowSample(rows, stored, exact), facts, spread, drawn.diagonal[looked])
        watched = np.concatenate([stored, exact])
        test = TestMeans(drawn.stored_test[looked], watched, drawn.filter, rule.times, rule.ridges, scales)
        rule = EstimateRule(rule, test, others)
    dense = KrylovSolution.from_eigensystem(*np.linalg.eigh(drawn.stored), drawn.targets, noise)
    found = Watched(drawn, rule, means(dense, drawn), scales, noise)
    block_lanczos(
        DenseOperator(drawn.stored), drawn.targets, max_steps=most, stop=found, check_every=lambda step: step + 1
    )
    return found


@dataclass(frozen=True)
class Line:
    """The result of a problem: predictions beyond the target at the stop, and the passes that were made and needed."""

    kind: str
    predictions: int
    beyond: int
    worst: float
    made: int
    needed: int

    @staticmethod
    def of(found: Watched) -> Line | None:
        """None where the space was invariant before the rule stopped."""
        if found.stopped is None:
            return None
        over = [error / found.target for error in found.errors]
        bad = [k + 1 for k, one in enumerate(over) if one.max() > 1]
        here = over[found.stopped - 1]
        needed = min(max(bad, default=0) + 1, len(over))
        return Line(found.drawn.kind, here.size, int((here > 1).sum()), float(here.max()), found.stopped, needed)


def summary(lines: list[Line]) -> tuple[str, bool]:
    """Return a table by kind of problem, and whether the rule passed the test."""
    heads = ("problems", "predictions", "beyond", "problems with any", "furthest", "passes made", "needed")
    made = [
        "| kind | " + " | ".join((*heads, "late: median", "by over 10% and 2")) + " |",
        "|---" * (len(heads) + 3) + "|",
    ]
    right = True
    for kind in (*KINDS, "in all"):
        mine = [line for line in lines if kind in (line.kind, "in all")]
        if not mine:
            continue
        predictions, beyond = sum(x.predictions for x in mine), sum(x.beyond for x in mine)
        late = np.array([(x.made - x.needed) / x.needed for x in mine])
        needed = np.array([x.made - x.needed - 0.1 * x.needed for x in mine])
        cells = [f"{len(mine)}", f"{predictions:,}", f"{beyond / predictions:.3%}"]
        cells += [f"{np.mean([x.beyond > 0 for x in mine]):.1%}", f"{max(x.worst for x in mine):.2g}"]
        cells += [f"{np.mean([x.made for x in mine]):.1f}", f"{np.mean([x.needed for x in mine]):.1f}"]
        made.append(f"| {kind} | {' | '.join([*cells, f'{np.median(late):.0%}', f'{np.mean(needed > 2):.1%}'])} |")
        right = beyond <= 0.01 * predictions and float(np.median(needed)) <= 2
    return "\n".join(made), right


def recorded(paths: list[Path]) -> dict[int, Line | None]:
    """Return the problems of records by number, with None for problems whose space became complete first."""
    rows = [json.loads(row) for path in paths if path.exists() for row in path.read_text().splitlines()]
    return {row["problem"]: Line(**row["line"]) if row["line"] else None for row in rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first problem")
    parser.add_argument("--seconds", type=float, default=math.inf, help="no problem begins after this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop", choices=("estimate", "bound"), default="estimate")
    parser.add_argument(
        "--record", type=Path, help="a file of one seed and one way to stop, that every problem adds a line to"
    )
    parser.add_argument("--table", type=Path, nargs="+", help="sum up these records, and do nothing else")
    options = parser.parse_args()
    done = recorded(options.table or ([options.record] if options.record else []))
    end = time.monotonic() + options.seconds
    for k in range(options.first, options.first + options.problems) if not options.table else ():
        if k in done:
            continue
        if time.monotonic() > end:
            break
        done[k] = line = Line.of(tried(draw(np.random.default_rng([options.seed, k])), options.stop))
        if options.record:
            with options.record.open("a") as file:
                file.write(json.dumps({"problem": k, "line": line and asdict(line)}) + "\n")
        if line is not None and line.beyond:
            print(f"problem {k}: {line}", flush=True)
    print(
        f"{len(done)} problems, of which {sum(line is None for line in done.values())} were complete before they stopped"
    )
    lines = [line for line in done.values() if line is not None]
    if not lines:
        return 0
    table, right = summary(lines)
    print(table)
    return int(not right)


if __name__ == "__main__":
    sys.exit(main())
