"""What variances will take, for the plan: passes, arithmetic and time of a batch, and what a factor would take instead."""

from __future__ import annotations

from ntkpipe.config import RunConfig
from ntkpipe.gram.plan import GramPlan, human_bytes, human_seconds
from ntkpipe.planning.memory import batch_columns, memory_budget, variance_memory
from ntkpipe.planning.plan import Shapes
from ntkpipe.planning.storing import PRODUCT_RATE

# Passes of a batch to a bound of 1e-4 at t = inf without ridge: 2,000 CIFAR-10 images, three hidden ReLU layers, batches of 20
# took 22 (NNGP), 18 (NTK) and, for ensembles, whose error is of first order, 27; batches of 64 a third less, of 8 a fifth more.
_PASSES = {"nngp": 22, "ntkgp": 18, "ntk": 27}
# Times of the default grid, where none are given.
_TIMES = 16


def describe_covariance(config: RunConfig, shapes: Shapes, plan: GramPlan) -> str | None:
    """Lines like those of `GramPlan.describe`; None where no variances are asked for."""
    if config.predict.covariance == "none":
        return None
    n, p, solver = shapes.used_train, shapes.used_test, config.solver
    times = _TIMES if config.predict.times is None else len(config.predict.times)
    ridges, parts, kernels = len(config.predict.ridges), config.copies, config.predict.kernels
    step = batch_columns(config, n, p, times, memory_budget(config), plan.workers)
    need, batches = variance_memory(config, n, times), -(-p // step)
    rate = PRODUCT_RATE["float64"] * plan.workers
    lines = [
        f"covariance  {config.predict.covariance}, {batches:,} batches of {step} test images per kernel"
        f"{' and part' if parts > 1 else ''}, {human_bytes(step * need.per_column + need.fixed)} each"
    ]
    total = 0.0
    for kernel in kernels:
        flops, text = _batch_flops(config, kernel, n, step, times, ridges)
        total += batches * parts * flops / rate
        lines.append(f"            {kernel}: {text}, {flops:.3g} flops, about {human_seconds(flops / rate)} a batch")
    lines.append(f"            in all about {human_seconds(total)}")
    if solver.kind != "cholesky":
        # One factor a ridge; then two triangles and, of ensembles, the NNGP, for every test image.
        direct = len(kernels) * parts * ridges * (n**3 / 3 + 6.0 * n * n * p) / rate
        if direct < total:
            lines.append(
                f"            solver=cholesky would take about {human_seconds(direct)}, at t = inf alone: it is cheaper here"
            )
    return "\n".join(lines)


def _batch_flops(config: RunConfig, kernel: str, n: int, k: int, times: int, ridges: int) -> tuple[float, str]:
    kind, pair = config.solver.kind, 2.0 * n * n * k
    nngp = times * ridges if kernel == "ntk" else 0  # products with the NNGP
    if kind == "krylov":
        passes = min(_PASSES[kernel], -(-n // k))
        m = passes * k
        nngp = min(nngp, passes)
        # The passes, reorthogonalisation, and eigenvectors of projected kernels: 10 m^3, some three times.
        return pair * (passes + nngp) + 4.0 * n * m * m + 30.0 * m**3, f"some {passes} passes with {k} columns"
    if kind == "cg":
        passes = ridges * _PASSES[kernel]
        return pair * (passes + nngp + 2 * ridges), f"some {passes} passes with {k} columns"
    if kind == "cholesky":
        return pair * (2 * ridges + nngp), f"two passes for each of {ridges} ridges"
    return pair * (2 + nngp), f"products with the eigenvectors and {nngp} passes over the NNGP" if nngp else "products"
