"""Verify that everything a run has stored is unchanged and right.

Damaged objects are listed and deleted, so that they are regenerated.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ntkpipe.errors import IdentityError, NtkpipeError
from ntkpipe.kernels.spec import FORMULA_VERSION
from ntkpipe.linalg.checkpoint import damaged_entries
from ntkpipe.predictions.read import read_predictions, verify_predictions
from ntkpipe.run.context import RunContext
from ntkpipe.run.exports import damaged_exports, forget_damaged_record
from ntkpipe.run.places import SOLVES
from ntkpipe.run.prepare import forget_data, reopen
from ntkpipe.run.recheck import recheck_answers, recheck_tiles
from ntkpipe.run.run_dir import STAGES, RunDir
from ntkpipe.run.solving import restore
from ntkpipe.storage.store import open_store
from ntkpipe.tasks.executor import Executor
from ntkpipe.tiles import audit
from ntkpipe.tiles.store import GramStore

# Solver states in the store, except the tiles of factors.
_CHECKPOINTS = tuple(prefix for prefix in SOLVES if prefix != "cholesky/")


@dataclass
class Findings:
    """The result of a verification.

    Args:
        damaged: one line per damaged object.
        harmless: one line per object that is unused.
        gram: damage of each Gram store, as `audit.repair` takes it.
        images: whether prepared images are damaged.
        predictions: whether the predictions are damaged.
        stages: stages whose receipt, or file in the run's folder, is damaged.
        states: keys of damaged checkpoints of solvers.
        solves: kernels whose solution is wrong.
        checked: lines about what was checked.
    """

    damaged: list[str] = field(default_factory=list)
    harmless: list[str] = field(default_factory=list)
    gram: list[tuple[GramStore, audit.Problem]] = field(default_factory=list)
    images: bool = False
    predictions: bool = False
    stages: list[str] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    solves: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)


def verify(run: RunDir, context: RunContext | None) -> Findings:
    """Check all stored images, tiles, receipts, diagonals, solver states, predictions, files and exports of a run.

    Args:
        run: the run to check.
        context: context of the run; None if the prepared images are missing.
    """
    found = Findings()
    if context is not None:
        _require_same_formulas(run, context)
    if context is None:
        found.images = True
        found.damaged.append("the prepared data is missing or damaged")
    else:
        problems = context.data.find_damage()
        for name, changes in context.opened.source.find_changes().items():
            problems += changes
            found.checked.append(name)
        found.images = bool(problems)
        found.damaged += problems
        found.checked.append(f"data {context.data.prefix}")
        for gram in context.opened.stores:
            for problem in audit.verify(gram):
                if problem.is_harmless:
                    found.harmless.append(problem.text)
                    continue
                found.damaged.append(problem.text if problem.key in problem.text else f"{problem.key}: {problem.text}")
                found.gram.append((gram, problem))
            what = "tiles" if context.opened.tiles.stored else "diagonals (this run stores no tiles)"
            found.checked.append(f"{what} {gram.where}")
        for prefix in _CHECKPOINTS:
            for key in damaged_entries(context.store, prefix):
                found.states.append(key)
                found.damaged.append(f"{key} in {context.store.url} is damaged; its content is recomputed when needed")
    for stage in STAGES:
        name = run.path / "stages" / f"{stage}.json"
        lines = [f"{name} is damaged"] if name.exists() and run.receipt(stage) is None else run.damaged_files(stage)
        if lines:
            found.stages.append(stage)
            found.damaged += lines
    found.damaged += damaged_exports(run)
    if (receipt := run.receipt("predict")) is not None:
        path = run.path / "predictions.zarr"
        problems = verify_predictions(path)
        if not problems and read_predictions(path).fingerprint() != receipt["fingerprint"]:
            problems = [f"{path} holds other predictions than those in the run's receipt"]
        found.predictions = bool(problems)
        found.damaged += problems
        found.checked.append(f"predictions {path}")
    return found


def recheck(
    run: RunDir, context: RunContext, found: Findings, executor: Executor, tiles: int, rows: int, seed: int
) -> None:
    """Recompute random tiles, residuals and predictions, and add errors to `found`.

    Args:
        run: the run to check.
        context: context of the run.
        found: the result of `verify`, without damage.
        executor: computes rows of the kernel.
        tiles: largest number of tiles of each Gram store.
        rows: number of training images and of test images at which the results are checked.
        seed: seed of the choice.
    """
    if context.opened.tiles.stored:
        for one in recheck_tiles(context, tiles, seed):
            (found.damaged if one.wrong else found.checked).append(one.text)
            if one.gram is not None and one.problem is not None:
                found.gram.append((one.gram, one.problem))
                # All solutions that were computed from it are wrong as well.
                found.solves = list(run.config.predict.kernels) if run.receipt("solve") is not None else []
    if run.receipt("predict") is None or found.damaged:
        return
    predictions = read_predictions(run.path / "predictions.zarr", covariance=False)
    for name in predictions.kernels:
        for one in recheck_answers(context, restore(context, name, run), predictions, rows, seed, executor):
            (found.damaged if one.wrong else found.checked).append(one.text)
            if one.wrong and name not in found.solves:
                found.solves.append(name)


def discard_damaged(run: RunDir, context: RunContext | None, found: Findings) -> None:
    """Delete damaged objects, so that their stages run again."""
    if context is not None:
        for gram in context.opened.stores:
            audit.repair(gram, [problem for store, problem in found.gram if store == gram])
    if found.images and context is not None:
        forget_data(context)
    for key in found.states:
        open_store(run.config.store.url).delete(key)
    run.forget(*found.stages)
    forget_damaged_record(run)
    if found.predictions or "predict" in found.stages:
        run.forget("predict", "report")
    if found.solves:
        # Delete its checkpoints too: a solve resumed from them would give the same result.
        facts, store = run.require("solve")["kernels"], open_store(run.config.store.url)
        for name in found.solves:
            prefix = f"{facts[name]['solver']}/{facts[name].get('key', '-')}/"
            for key in list(store.list(prefix)):
                store.delete(key)
        # Batches of variances may come from the same tiles.
        for key in list(store.list("uncertainty/")):
            store.delete(key)
        run.forget("solve", "predict", "report")


def _require_same_formulas(run: RunDir, context: RunContext) -> None:
    """Refuse a run whose tiles come from kernel formulas of another version, because they cannot be compared.

    Raises:
        IdentityError: with the commands that still work.
    """
    stored = str((run.receipt("gram") or {}).get("store", ""))
    if not stored or context.opened.is_recorded_as(stored):
        return
    raise IdentityError(
        f"{run.path} was computed with the kernel formulas of another version of ntkpipe (its tiles are in {stored}; "
        f"this version has formulas {FORMULA_VERSION}), which this version cannot check. Its predictions, exports and "
        "figures can still be read. To compute with the present formulas, run the same settings in another run_dir"
    )


def try_reopen(run: RunDir) -> RunContext | None:
    """Return the context of a stored run, or None if its images are missing or damaged, without writing anything.

    Raises:
        StoreError: if its store is missing.
    """
    run.require_store()
    try:
        return reopen(run)
    except NtkpipeError:
        return None
