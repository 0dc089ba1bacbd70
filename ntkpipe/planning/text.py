"""Plans as tables for terminals and notebooks."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from ntkpipe.gram.plan import ITEM_BYTES, GramPlan
from ntkpipe.linalg.preconditioner import largest_rank
from ntkpipe.planning.memory import Batches, Peak, cg_bytes
from ntkpipe.planning.refinement import describe_refinement
from ntkpipe.planning.solving import batch_flops, batches, pass_seconds, variances
from ntkpipe.planning.storing import Storing
from ntkpipe.units import human_bytes, human_seconds

if TYPE_CHECKING:
    from ntkpipe.planning.plan import RunPlan  # which imports this module to print itself

Row = tuple[str, ...]


def describe(plan: RunPlan) -> str:
    """The whole plan: tiles, storage, solver, variances, and the table of stages."""
    parts = [describe_tiles(plan.tiles)] if plan.stores else []
    parts += [describe_storing(plan.storing)] if plan.storing is not None else []
    parts += [describe_solver(plan), *describe_covariance(plan), "", describe_stages(plan), describe_origins(plan)]
    return "\n".join(parts)


def as_html(plan: RunPlan) -> str:
    """The plan as HTML: the stages as a table, and the rest as text."""
    head, *rows = _stages(plan)
    cells = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    cells += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    table = "".join(f"<tr>{row}</tr>" for row in cells)
    notes = "".join(f"<li>{escape(note)}</li>" for note in plan.notes)
    return (
        f"<p>{escape(_heading(plan))}</p><table>{table}</table>{f'<ul>{notes}</ul>' if notes else ''}"
        f"<details><summary>tiles, storage and solver</summary><pre>{escape(describe(plan))}</pre></details>"
    )


def describe_tiles(plan: GramPlan) -> str:
    """Blocks and tiles, as a table."""
    lines = [f"{'block':<8}{'points':>20}{'tiles':>10}{'pairs':>12}{'on disk':>12}"]
    item = ITEM_BYTES[plan.store_dtype]
    for b in plan.blocks:
        points = f"{b.used.rows:,} x {b.used.cols:,}"
        arrays = len(plan.stores) * b.tiles * plan.kernels
        size = arrays * min(plan.edge, b.whole.rows) * min(plan.edge, b.whole.cols) * item * plan.stored
        lines.append(f"{b.block:<8}{points:>20}{b.tiles:>10,}{b.pairs:>12.3g}{human_bytes(size):>12}")
    lines += [
        "",
        f"tile        {plan.edge} x {plan.edge}, computed in {plan.kernel_dtype}, "
        f"{'stored' if plan.stored else 'not stored but recomputed on every read,'} in {plan.store_dtype}, "
        f"{'NNGP and NTK' if plan.kernels > 1 else 'one kernel'}",
        *_shared(plan),
        f"arithmetic  {plan.flops_per_pair:,.0f} flops per pair, {plan.flops:.3g} {'in all' if plan.stored else 'once'}",
        f"disk        {human_bytes(plan.disk_bytes)}",
        f"memory      {human_bytes(plan.memory_per_worker)} per worker, "
        f"{human_bytes(plan.memory_per_worker * plan.workers)} for {plan.workers}",
        *([] if plan.pairs_per_step is None else [f"steps       pairs of points at a time: {plan.pairs_per_step}"]),
        f"time        {human_seconds(plan.seconds)} {'for all tiles' if plan.stored else 'for each tile once'}, at "
        f"{plan.rate.flops / 1e9:.3g} GF/s per worker ({plan.rate.source})",
    ]
    return "\n".join(lines)


def _shared(plan: GramPlan) -> list[str]:
    """A line about the evaluations that several stores share; empty for a single store."""
    if len(plan.stores) == plan.evaluations == 1:
        return []
    flips = "two evaluations of a pair, one with the second image flipped"
    shared = flips if plan.evaluations > 1 else "one evaluation of a pair, that of the deepest network"
    return [f"stores      {len(plan.stores)}: {', '.join(plan.stores)}; from {shared}"]


def describe_storing(storing: Storing) -> str:
    """The comparison of stored and recomputed tiles."""
    stored, recomputed = storing.stored_seconds, storing.recomputed_seconds
    if stored == float("inf") or recomputed == float("inf"):
        return (
            f"tiles       {'stored' if storing.stored else 'recomputed'} ({storing.why}); the alternative does not fit"
        )
    ratio = recomputed / max(stored, 1e-9)
    compared = f"{ratio:.2g} times the time" if ratio >= 1 else f"{1 / ratio:.2g} times faster"
    return (
        f"tiles       {'stored' if storing.stored else 'recomputed'} ({storing.why})\n"
        f"            stored: {human_seconds(stored)} and {human_bytes(storing.nbytes)} of disk; recomputed: "
        f"{human_seconds(recomputed)} ({compared}) and no disk; {storing.held:.0%} of the tiles stay in memory between passes"
    )


def describe_solver(plan: RunPlan) -> str:
    """The solver's cost and memory."""
    lines = {"eigh": _eigh, "cholesky": _factors}.get(plan.config.solver.kind, _iterations)(plan)
    peak = plan.stage("solve").memory
    shown = [] if peak is None else [f"            {_describe_peak(plan, peak)}"]
    return "\n".join([*lines, *shown, *describe_refinement(plan)])


def _eigh(plan: RunPlan) -> list[str]:
    # Variances under flips also need the odd part of a kernel.
    each = "per kernel"
    if plan.config.copies > 1 and plan.config.predict.covariance != "none":
        each += " and part"
    return [f"solver      eigh: {9 * plan.work.n**3:.3g} flops {each}, {len(plan.work.kernels)} kernels"]


def _factors(plan: RunPlan) -> list[str]:
    config, factor = plan.config, plan.factors
    assert factor is not None
    kernels, ridges = len(plan.work.kernels), len(config.predict.ridges)
    count = kernels * ridges
    seconds = factor.flops / (plan.machine.rate("factor", factor.dtype) * factor.workers)
    loo = " plus the same for exact leave-one-out errors" if config.solver.leave_one_out else ""
    mixed = config.solver.precision == "mixed"
    fallback = "; a float64 factor of twice the size if float32 fails" if mixed else ""
    return [
        f"solver      cholesky: {count} factor{'s' if count > 1 else ''} in {config.solver.precision} ({kernels} kernels, "
        f"{ridges} ridges), each {factor.flops:.3g} flops, about {human_seconds(seconds)}{loo}",
        f"            {factor.tasks:,} tiles of edge {factor.edge}, {human_bytes(factor.stored_bytes)} stored for each{fallback}; "
        f"{human_bytes(int(factor.read_bytes))} read, {human_bytes(factor.peak_bytes)} of memory for tiles",
    ]


def _iterations(plan: RunPlan) -> list[str]:
    work, config = plan.work, plan.config
    n, c, products = work.n, work.c, config.solver.products
    entry = 4 if plan.tiles.store_dtype == "float32" or products == "float32" else 8
    unheld = "read" if plan.tiles.stored else "computed"
    held = (
        "all kept in memory" if work.held >= 1 else f"{work.held:.0%} kept in memory, the rest {unheld} on every pass"
    )
    seconds = pass_seconds(work) / work.w
    pass_ = (
        f"a pass takes {2 * n * n * c:.3g} flops, about {human_seconds(seconds)} in {products}, over "
        f"{human_bytes(n * (n + plan.tiles.edge) // 2 * entry)} of tiles per kernel ({held})"
    )
    if config.solver.kind == "cg":
        return [f"solver      cg: {pass_}", f"            {_describe_preconditioner(plan)}"]
    names = {kernel: kernel if plan.stores else "gram" for kernel in work.kernels}
    passes = ", ".join(f"{work.sizes.passes[kernel]:,} ({name})" for kernel, name in names.items())
    vectors, wanted = work.sizes.budget.basis, c * max(work.sizes.passes.values())
    item = config.solver.basis_item
    basis = f"basis {human_bytes(item * n * min(wanted, vectors))}{' in float32' if item == 4 else ''}"
    if vectors < wanted and item == 4:
        basis += f", but {vectors:,} vectors fit and float32 ones are not restarted: set solver.basis_dtype=float64"
    elif vectors < wanted:
        basis += f", restarted every {vectors:,} vectors"
    lines = [
        f"solver      krylov: {pass_}",
        f"            expected passes for t = inf without ridge: {passes}; {basis}",
    ]
    if config.predict.times == (math.inf,) and len(config.predict.ridges) == 1:
        lines.append(
            "            t = inf alone: solver=cg takes fewer passes, but gives no spectrum and no other times"
        )
    return lines


def _describe_preconditioner(plan: RunPlan) -> str:
    solver, n = plan.config.solver, plan.work.n
    kind, held = solver.preconditioner, human_bytes(cg_bytes(solver, n, plan.work.sizes.outputs))
    if kind == "none":
        return f"no preconditioner, {held} of vectors"
    if kind == "float32_factor":
        ridges = len(plan.config.predict.ridges)
        return f"a float32 factor for each of {ridges} ridges, {n**3 / 3:.3g} flops each, {held} with vectors"
    if solver.rank is None:
        rank, most = largest_rank(n, plan.work.c, kind), "at most "
    else:
        rank, most = min(solver.rank, n), ""
    product = 2 * n * n * rank if kind == "nystrom" else 4 * n * rank * rank
    return f"{kind} preconditioner of rank {most}{rank:,}: {product:.3g} flops to find it, {held} with vectors"


def _describe_peak(plan: RunPlan, peak: Peak) -> str:
    """Peak memory; separately for the driver and the workers if there are several machines."""
    if plan.config.cluster.kind != "ray":
        return f"at most {human_bytes(peak.together)} of memory, all processes together"
    own = plan.work.sizes.budget.driver
    said = (
        f"at most {human_bytes(peak.workers)} of memory in the workers, all nodes together; at most "
        f"{human_bytes(peak.driver)} in the driver, whose budget is {human_bytes(own)}"
    )
    return said + (
        ""
        if peak.driver <= own
        else ", which exceeds this machine's memory: run on a larger node, or set solver.basis_gib"
    )


def describe_covariance(plan: RunPlan) -> list[str]:
    """Batches of variances; empty if none are configured."""
    work, predict = plan.work, plan.config.predict
    if not work.sizes.batch:
        return []
    need = Batches.of(plan.config, work.n, work.sizes.times).memory
    size = human_bytes(work.sizes.batch * need.per_column + need.fixed)
    lines = [
        f"covariance  {predict.covariance}, {batches(work):,} batches of {work.sizes.batch} test points per kernel, {size} each"
    ]
    for kernel in predict.kernels:
        flops, passes = batch_flops(work, kernel)
        seconds = variances(work, kernel).seconds / batches(work)
        lines.append(
            f"            {kernel}: about {passes} passes with {work.sizes.batch} columns, {flops:.3g} flops, about "
            f"{human_seconds(seconds)} per batch"
        )
    return lines


def _count(number: float, noun: str) -> str:
    return f"{number:,.0f} {noun}{'' if number == 1 else 's'}"


def _heading(plan: RunPlan) -> str:
    machine = plan.machine
    nodes, workers = _count(machine.nodes.value, "node"), _count(machine.workers.value, "worker")
    each = " each" if machine.nodes.value > 1 else ""
    how = "" if plan.storing is None else " stored" if plan.tiles.stored else " recomputed on every pass"
    return (
        f"{plan.work.n:,} points on {machine.name}, {nodes} with {workers}{each}, tiles of {plan.tiles.edge} rows{how}"
    )


def _stages(plan: RunPlan) -> list[Row]:
    machine = plan.machine
    priced = machine.price.value > 0
    rows: list[Row] = [
        (
            *("stage", "time", "processors"),
            *(("node-hours", "cost") if priced else ()),
            *("read", "written", "network", "memory", "bottleneck"),
        )
    ]
    for stage in plan.stages:
        hours = machine.nodes.value * stage.seconds / 3600
        rows.append(
            (
                *(stage.name, human_seconds(stage.seconds), human_seconds(stage.processor_seconds)),
                *((f"{hours:,.3g}", f"{hours * machine.price.value:,.0f}") if priced else ()),
                *(human_bytes(amount) for amount in (stage.read, stage.written, stage.moved)),
                "" if stage.memory is None else human_bytes(stage.memory.together),
                stage.bottleneck if stage.seconds > 0 else "",
            )
        )
    rows.append(
        (
            *("all", human_seconds(plan.seconds), human_seconds(plan.processor_seconds)),
            *((f"{plan.node_hours:,.3g}", f"{plan.cost:,.0f}") if priced else ()),
            *("", "", "", "", f"{human_bytes(plan.stored)} stored"),
        )
    )
    return rows


def describe_stages(plan: RunPlan) -> str:
    """The table of stages, with warnings."""
    rows = _stages(plan)
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = [_heading(plan)]
    for row in rows:
        cells = (cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True))
        lines.append("  " + "  ".join((row[0].ljust(widths[0]), *cells, row[-1])).rstrip())
    return "\n".join([*lines, *(f"  note: {text}" for text in plan.notes)])


def describe_origins(plan: RunPlan) -> str:
    """One line with the origin of the figures."""
    kinds = plan.machine.kinds_of_origins()
    counted = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()) if kind != "other")
    if plan.machine.name != "this machine":
        return f"  numbers used: {counted}"
    measured = sorted({f.origin for f in plan.machine.figures().values() if f.origin.startswith("measured")})
    how = (
        f" ({measured[-1]})"
        if measured
        else ". ntkpipe calibrate measures this machine, and cluster.profile=NAME plans for another"
    )
    return f"  numbers used: {counted}{how}"


def compare_ways(stored: RunPlan, recomputed: RunPlan) -> str:
    """One line that compares stored and recomputed tiles."""
    ratio = stored.seconds / max(recomputed.seconds, 1e-9)
    faster, times = ("recomputed", ratio) if ratio > 1 else ("stored", 1 / ratio)
    said = f"{faster} are {times:.3g} times faster" if times >= 1.05 else "stored and recomputed take the same time"
    return (
        f"  tiles {said}: stored {human_seconds(stored.seconds)} and "
        f"{human_bytes(stored.stored)}, recomputed {human_seconds(recomputed.seconds)} and {human_bytes(recomputed.stored)}"
    )
