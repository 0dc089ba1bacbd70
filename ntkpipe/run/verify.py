"""Is everything that a run has stored what was written, and true? What is not is named, and dropped to be made again."""

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

# Of what solvers keep in the store, all but the tiles of factors.
_CHECKPOINTS = tuple(prefix for prefix in SOLVES if prefix != "cholesky/")


@dataclass
class Findings:
    """What verification found.

    Args:
        damaged: one line per object that cannot be trusted.
        harmless: objects that belong to nothing.
        gram: what is wrong with each Gram store, as `audit.repair` takes it.
        images: whether prepared images are damaged.
        predictions: whether the predictions are.
        stages: of which the receipt or a file of the run's folder is damaged.
        states: keys of damaged checkpoints of solvers.
        solves: kernels whose solution is wrong.
        checked: what was looked at, for people.
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
    """Check every stored object of a run: images, tiles, receipts, diagonals, states of solvers, predictions, files, exports.

    Args:
        run: to check.
        context: of the run; None where the prepared images are gone.
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
            what = "tiles" if context.opened.tiles.stored else "diagonals (of this run no tile is stored)"
            found.checked.append(f"{what} {gram.where}")
        for prefix in _CHECKPOINTS:
            for key in damaged_entries(context.store, prefix):
                found.states.append(key)
                found.damaged.append(
                    f"{key} in {context.store.url} is damaged: what it held is computed again when it is needed"
                )
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
            problems = [f"{path} holds other predictions than the run's receipt names"]
        found.predictions = bool(problems)
        found.damaged += problems
        found.checked.append(f"predictions {path}")
    return found


def recheck(
    run: RunDir, context: RunContext, found: Findings, executor: Executor, tiles: int, rows: int, seed: int
) -> None:
    """Compute random tiles, residuals and predictions again; what is wrong is added to `found`.

    Args:
        run: to check.
        context: of the run.
        found: by `verify`, with nothing damaged.
        executor: where rows of the kernel are computed.
        tiles: of each Gram store, at most.
        rows: training and test images at which the answers are checked.
        seed: of the choice.
    """
    if context.opened.tiles.stored:
        for one in recheck_tiles(context, tiles, seed):
            (found.damaged if one.wrong else found.checked).append(one.text)
            if one.gram is not None and one.problem is not None:
                found.gram.append((one.gram, one.problem))
                # Whatever was made from it is wrong as well.
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
    """Drop what cannot be trusted, so that the stages that made it run again."""
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
        # Its checkpoints too: a solve taken up from them would end where it did.
        facts, store = run.require("solve")["kernels"], open_store(run.config.store.url)
        for name in found.solves:
            prefix = f"{facts[name]['solver']}/{facts[name].get('key', '-')}/"
            for key in list(store.list(prefix)):
                store.delete(key)
        # Batches of variances may have been made from the same tiles.
        for key in list(store.list("uncertainty/")):
            store.delete(key)
        run.forget("solve", "predict", "report")


def _require_same_formulas(run: RunDir, context: RunContext) -> None:
    """Refuse a run whose tiles this version would compute otherwise: it has no others to compare them with.

    Raises:
        IdentityError: saying what still works.
    """
    stored = str((run.receipt("gram") or {}).get("store", ""))
    if not stored or context.opened.is_recorded_as(stored):
        return
    raise IdentityError(
        f"{run.path} was computed by kernel formulas of another version of ntkpipe (its tiles are in {stored}; this version has "
        f"formulas {FORMULA_VERSION}), which this one cannot check. Its predictions, exports and figures are read as before. For "
        "numbers by the formulas of now, run the same settings in a run_dir of its own"
    )


def try_reopen(run: RunDir) -> RunContext | None:
    """The inputs of a stored run, or None if its images are gone or damaged; nothing is written.

    Raises:
        StoreError: if its store is not there at all.
    """
    run.require_store()
    try:
        return reopen(run)
    except NtkpipeError:
        return None
