"""Cost model of solving and predicting. Symbols are those of `model.py`.

- krylov, cg  P passes, each: compute `2 n^2 c / (W skinny)`, or `s n^2 / 2 / (W tile_bandwidth)` on GPUs;
              store and path: the tiles not held in memory, all of them in the first pass; or, if tiles are recomputed, their evaluation;
              then the vectors and the workers' parts of the product, as `allreduce_cost.py` counts them; and `step`. Two passes
              more: the sampled rows, and the bound on the smallest eigenvalue from pairs of points. 15% of the passes more for
              estimates of errors.
  krylov      besides `4 n (c P)^2 / 2 sweeps / orthogonalise` over a basis that grows to m = c P vectors, and `20 m^3 / factor`, by the
              driver: the eigenvectors of the projected kernel, 10 m^3, and as much again for all checks of the stopping rule.
  cg          P for each ridge at most: preconditioners and the ridge before save some.
- Cholesky    `n^3 / 3 / (W factor)` for each ridge, twice with leave-one-out errors; bytes as `linalg/factor/plan.py` counts them.
- eigh        `9 n^3 / factor`, by the driver.
- predict     one pass over the test tiles for every kernel, with as many vectors as the basis has or times, ridges and outputs.
  variances   for each of `p / k` batches of k test images: its passes, products with the NNGP of ensembles, and of krylov
              `4 n m^2 + 30 m^3` for a basis of m vectors: reorthogonalisation, and eigenvectors of projected kernels, 10 m^3 each.
"""

from __future__ import annotations

from dataclasses import replace

from ntkpipe.linalg.factor.plan import FactorPlan
from ntkpipe.planning.allreduce_cost import allreduce_cost
from ntkpipe.planning.machine import Machine
from ntkpipe.planning.model import Work, fixed
from ntkpipe.planning.passes import ESTIMATE_SHARE, batch_passes
from ntkpipe.planning.refinement import correction_passes, test_phase, train_phase
from ntkpipe.planning.roofline import Phase, Stage

# Sweeps over the basis in each step: the second sweep is made only if the first one lost norm.
_SWEEPS = 1.2
# Passes over the tiles besides those of the iteration: sampled rows, and pairs of points.
_OTHER_PASSES = 2
# Tiles per worker above which rounding to whole tiles does not matter.
_MANY = 50
# Largest number of tile rows of a factor that are counted one by one.
_COUNTED = 500


def project(work: Work) -> tuple[Stage, ...]:
    """Project all stages of a run."""
    return work.start(), work.images(), work.gram(), solve(work), predict(work), work.report()


def solve(work: Work) -> Stage:
    """Project the solves of all kernels, and their refinement if it is configured."""
    made = _solve(work)
    if not work.config.solver.refine:
        return made
    corrections = [work.computing(correction_passes(work, kernel) * pass_seconds(work)) for kernel in work.kernels]
    return replace(made, phases=(*made.phases, train_phase(work), *corrections))


def _solve(work: Work) -> Stage:
    kind = work.config.solver.kind
    if kind == "cholesky":
        return _factor(work)
    if kind == "eigh":
        return _eigensystem(work)
    phases, read, moved, stored = [fixed(work.machine.first_solve), work.exact()], 0.0, 0.0, 0.0
    for kernel in work.kernels:
        passes = work.sizes.passes[kernel]
        made, taken = _iterate(work, passes)
        phases += made
        read += taken
        moved += passes * allreduce_cost(work.machine, 8.0 * work.n * work.c).moved
        stored += float(work.config.solver.basis_item) * work.n * work.c * passes if kind == "krylov" else 0.0
    return Stage("solve", tuple(phases), read, stored, moved, stored)


def pass_seconds(work: Work) -> float:
    """Seconds of arithmetic of one product with a kernel, summed over workers."""
    machine, products = work.machine, work.config.solver.products
    flops = 2.0 * work.n**2 * work.c
    if machine.accelerated:
        return max(flops / machine.rate("matrix", products), work.train / machine.tile_bandwidth.value)
    return flops / machine.rate("skinny", products)


def _iterate(work: Work, passes: int) -> tuple[list[Phase], float]:
    """The phases of one kernel's solve, and the bytes that it reads."""
    machine, n, c = work.machine, work.n, work.c
    tiles = work.plan.blocks[0].tiles
    slowest = work.rounds(tiles) if tiles < _MANY * work.w else 1.0
    estimates = 0.0 if work.config.predict.error_estimate == "false" else ESTIMATE_SHARE * passes
    products = (passes + estimates + _OTHER_PASSES) * pass_seconds(work)
    again = (1 - work.held) * passes  # those of the iteration but the first, and the bound from pairs
    if work.plan.stored:
        read = work.train * (2 + again)  # the sampled rows are read separately
        phase = work.computing(
            products, slowest=slowest, path=work.path(read, "read"), store=work.read(read, work.plan.disk_bytes)
        )
    else:
        read, evaluation = 0.0, work.evaluation(0)[0]
        phase = work.computing(products + (1 + again) * evaluation, slowest=slowest)
    messages = passes * allreduce_cost(machine, 8.0 * n * c).seconds
    steps = passes * machine.step.value
    phases = [
        fixed(machine.pool),
        phase,
        Phase({"network": messages}, messages),
        Phase({"driver": steps}, steps),
    ]
    if work.config.solver.kind == "krylov":
        m = min(n, c * passes)
        written = work.write(float(work.config.solver.basis_item) * n * m)
        phases.append(work.algebra(4.0 * _SWEEPS * n * m * m / 2, written))
        phases.append(_dense(work, 20.0 * m**3))
    return phases, read


def _factor(work: Work) -> Stage:
    machine, factor = work.machine, work.sizes.factors
    assert factor is not None
    count = len(work.kernels) * len(work.config.predict.ridges)
    twice = 2 if work.config.solver.leave_one_out else 1
    written, read = float(factor.stored_bytes), _factor_read(factor)
    phase = work.computing(
        twice * factor.flops / machine.rate("factor", factor.dtype),
        path=work.path(written, "write") + work.path(read, "read"),
        store=work.write(written) + work.read(read, written),
    )
    evaluated = () if work.plan.stored else (work.computing(work.evaluation(0)[0]),)
    phases = (fixed(machine.first_solve), work.exact(), fixed(machine.pool), *(phase, *evaluated) * count)
    return Stage("solve", phases, count * read, count * written, 0.0, count * written)


def _factor_read(factor: FactorPlan) -> float:
    """Bytes read to compute a factor. For very many tiles the sum's leading term replaces counting, which would take
    minutes.
    """
    if factor.tile_rows <= _COUNTED:
        return float(factor.read_bytes)
    cached = min(1.0, factor.workers * factor.cache_bytes / factor.stored_bytes)
    return factor.stored_bytes * (1.0 + max(1.0, factor.tile_rows / 3 * (1 - cached)))


def _eigensystem(work: Work) -> Stage:
    count = len(work.kernels)
    read = count * work.train
    phase = _dense(work, count * 9.0 * work.n**3, work.read(read, work.plan.disk_bytes))
    return Stage("solve", (fixed(work.machine.first_solve), work.exact(), phase), read)


def _dense(work: Work, flops: float, store: float = 0.0) -> Phase:
    """A phase of dense algebra in the driver, such as eigenvectors."""
    seconds = flops / work.machine.rate("factor", "float64")
    return Phase({"driver": seconds, "store": store}, seconds * work.machine.driver_threads.value)


def predict(work: Work) -> Stage:
    """Project the predictions: means, and variances if configured."""
    machine, config, n, p = work.machine, work.config, work.n, work.p
    wanted = work.sizes.times * len(config.predict.ridges) * work.c
    phases, read, moved = [work.exact()], 0.0, 0.0
    for kernel in work.kernels:
        columns = min(work.sizes.passes[kernel] * work.c, wanted) if config.solver.kind == "krylov" else wanted
        compute = 2.0 * p * n * columns / machine.rate("matrix", config.solver.products)
        phases.append(fixed(machine.pool))
        if work.plan.stored:
            read += work.test
            phases.append(
                work.computing(
                    compute, path=work.path(work.test, "read"), store=work.read(work.test, work.plan.disk_bytes)
                )
            )
        else:
            phases.append(work.computing(compute + work.evaluation(1)[0]))
        sent = 8.0 * columns * (n * machine.nodes.value + p * work.w)
        moved += sent
        phases.append(Phase({"network": sent / machine.network.value}, sent / machine.network.value))
    if config.solver.refine:
        phases.append(test_phase(work))
    if work.sizes.batch:
        phases += [variances(work, kernel) for kernel in config.predict.kernels]
    return Stage("predict", tuple(phases), read, moved=moved)


def batches(work: Work) -> int:
    """Number of batches of variances of one kernel, for both parts under flips."""
    return -(-work.p // work.sizes.batch) * work.config.copies


def batch_flops(work: Work, kernel: str) -> tuple[float, int]:
    """The operations of one batch of variances, and its passes over the kernel."""
    config, n, k = work.config, work.n, work.sizes.batch
    ridges, product = len(config.predict.ridges), 2.0 * n * n * k
    passes = batch_passes(config.solver, kernel, n, k, ridges)
    nngp = work.sizes.times * ridges if kernel == "ntk" else 0  # products with the NNGP
    if config.solver.kind == "krylov":
        m = passes * k
        return product * (passes + min(nngp, passes)) + 4.0 * n * m * m + 30.0 * m**3, passes
    checks = 2 * ridges if config.solver.kind == "cg" else 0
    return product * (passes + nngp + checks), passes


def variances(work: Work, kernel: str) -> Phase:
    """The phase of all batches of variances of one kernel, at the rate of float64 products."""
    return work.computing(batches(work) * batch_flops(work, kernel)[0] / product_rate(work.machine))


def factored_variances(work: Work) -> float:
    """Seconds of variances by `solver=cholesky`: a factor for each ridge, then two triangles and, of ensembles, the NNGP."""
    config, n = work.config, work.n
    flops = len(config.predict.kernels) * config.copies * len(config.predict.ridges) * (n**3 / 3 + 6.0 * n * n * work.p)
    return flops / (product_rate(work.machine) * work.w)


def product_rate(machine: Machine) -> float:
    """Products of tiles with some columns in float64, flops per second of a worker."""
    return machine.rate("matrix" if machine.accelerated else "skinny", "float64")


def notes(work: Work) -> tuple[str, ...]:
    """Warnings about memory that does not suffice, with remedies."""
    found, n, c = [], work.n, work.c
    machine, solver = work.machine, work.config.solver
    most = max((work.sizes.passes[k] for k in work.kernels), default=0)
    if solver.kind == "cg":  # once per ridge
        most = -(-most // len(work.config.predict.ridges))
    if solver.kind in ("krylov", "cg") and most > solver.max_steps:
        found.append(f"about {most:,} passes are expected: set solver.max_steps above that number, or add a ridge")
    basis = float(solver.basis_item) * n * c * most
    if solver.kind == "krylov" and basis > machine.driver_memory.value:
        found.append(
            f"the basis takes {basis / 1e9:,.0f} GB and the driver's node has "
            f"{machine.driver_memory.value / 1e9:,.0f} GB: use solver=cg, a ridge, or a larger head node"
        )
    if solver.kind == "eigh" and 24.0 * n * n > machine.driver_memory.value:
        found.append(f"eigh needs {24.0 * n * n / 1e9:,.0f} GB in one process: use solver=krylov")
    if work.plan.memory_per_worker > machine.memory.value:
        found.append("a tile does not fit into a worker's memory: set a smaller grid.edge")
    if work.plan.stored and work.held < 1 and solver.kind in ("krylov", "cg"):
        found.append(f"{work.held:.0%} of a kernel's tiles stay in the workers' memory; the rest is read on every pass")
    if work.sizes.batch and solver.kind != "cholesky":
        own = sum(variances(work, kernel).seconds for kernel in work.config.predict.kernels)
        if (direct := factored_variances(work)) < own:
            found.append(
                f"solver=cholesky would compute the variances in {direct:,.0f} s instead of {own:,.0f} s, "
                "but only at t = inf"
            )
    return tuple(found)
