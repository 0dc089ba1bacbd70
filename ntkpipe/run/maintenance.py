"""Looking after what is stored: status of a run, verification with repair, and reclaiming space."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ntkpipe.data.given_gram import GivenGram
from ntkpipe.data.prepared import prepared_prefixes
from ntkpipe.errors import ConfigError, IdentityError, NtkpipeError, StoreError
from ntkpipe.kernels.spec import FORMULA_VERSION
from ntkpipe.linalg.checkpoint import damaged_entries
from ntkpipe.predictions.read import read_predictions, verify_predictions
from ntkpipe.run.context import Inputs, damaged_images, forget_images, reopen
from ntkpipe.run.exports import damaged_exports, forget_damaged_record
from ntkpipe.run.places import SOLVES, is_store
from ntkpipe.run.recheck import recheck_answers, recheck_tiles
from ntkpipe.run.run_dir import STAGES, RunDir
from ntkpipe.run.solving import restore
from ntkpipe.run.watching import told_of_store
from ntkpipe.sources.precomputed import changed_content
from ntkpipe.storage.board import is_running, read_boards
from ntkpipe.storage.store import ObjectStore, local_folder, open_store
from ntkpipe.tasks.executor import Executor
from ntkpipe.tiles import audit
from ntkpipe.tiles.catalogue import delete_gram_store, list_gram_stores
from ntkpipe.tiles.store import GramStore
from ntkpipe.units import human_bytes, human_seconds

# Of what solvers keep in the store, all but the tiles of factors.
_CHECKPOINTS = tuple(prefix for prefix in SOLVES if prefix != "cholesky/")
# Programs that workers of a cluster have compiled (`cluster/joined.py`), and what its nodes show that they see the store by
# (`cluster/store_probe.py`): removed at the end of a run, and left by one that was killed.
_COMPILED, _MARKS = ".compiled/", ".probe/"


def status(run: RunDir) -> tuple[list[str], bool]:
    """What is done, what is left, the rate and the time remaining.

    Returns:
        Lines for people, and whether the run is finished.
    """
    # Each receipt is read once: a run at work writes the next one meanwhile, and all lines must tell of one moment.
    receipts = {stage: run.receipt(stage) for stage in STAGES}
    finished = all(receipts.values())
    lines = [f"{run.path}: {_state(run, receipts)}"]
    for stage, receipt in receipts.items():
        if receipt is not None:
            took = human_seconds(receipt["seconds"])
            lines.append(f"  {stage:<8} done {receipt['finished']}, {took}{_detail(stage, receipt)}")
    progress = run.read_json("progress.json") or {}
    for stage, receipt in receipts.items():
        if receipt is None:
            known = progress.get("stage") == stage
            now = f"{progress.get('line')} ({progress.get('time')})" if known else "to do"
            lines.append(f"  {stage:<8} {now}")
    if told := told_of_store(progress):
        lines.append(f"  store    {', '.join(told)} since the last start")
    try:
        if local_folder(run.config.store.url) is not None:  # a bucket is not asked whether a finished run is finished
            run.require_store()
        if receipts["gram"] is None and receipts["data"] is not None:
            lines += [f"  {text}" for text in _tiles(run)]
    except StoreError as error:
        lines.append(f"  store    {error}")
    return lines, finished


def _state(run: RunDir, receipts: Mapping[str, dict[str, Any] | None]) -> str:
    if all(receipts.values()):
        return "finished"  # though its process may not have let go yet
    if (who := run.holder()) is not None:
        return f"running ({who})"
    return "finished" if receipts["report"] else "not running; the same command goes on where it stopped"


def _detail(stage: str, receipt: dict[str, Any]) -> str:
    if stage == "gram" and receipt.get("given"):
        return f", given: {receipt['store']}"
    if stage == "gram" and not receipt["tiles"]:
        return ", diagonals alone: tiles are computed when they are read"
    if stage == "gram":
        return f", {receipt['tiles']:,} tiles ({receipt['computed']:,} computed, {receipt['reused']:,} reused)"
    if stage == "solve":
        parts = [f"{k}: {f['steps']} steps, residual {f['true_residual']:.1e}" for k, f in receipt["kernels"].items()]
        return ", " + "; ".join(parts)
    if stage == "predict":
        return f", largest error bound {receipt['max_error_bound']:.1e}"
    return f", {receipt['page']}" if stage == "report" else f", {receipt['n_train']:,} + {receipt['n_test']:,} images"


def _tiles(run: RunDir) -> Iterator[str]:
    inputs = reopen(run)
    if inputs.job is None:
        yield f"the kernel is given: {inputs.gram.where}"
        return
    if not inputs.plan.stored:
        yield f"tiles are computed when they are read; diagonals are stored in {inputs.gram.where}"
        return
    for block in inputs.plan.blocks:
        left = sum(1 for _ in inputs.job.missing(block.block, block.used))
        yield f"{block.block}: {block.tiles - left:,} of {block.tiles:,} tiles are stored in {inputs.gram.where}"


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


def verify(run: RunDir, inputs: Inputs | None) -> Findings:
    """Check every stored object of a run: images, tiles, receipts, diagonals, states of solvers, predictions, files, exports.

    Args:
        run: to check.
        inputs: of the run; None where the prepared images are gone.
    """
    found = Findings()
    if inputs is not None:
        _require_same_formulas(run, inputs)
    if inputs is None:
        found.images = True
        found.damaged.append("the prepared images are missing or damaged")
    else:
        problems = damaged_images(inputs)
        if isinstance(inputs.gram, GivenGram):
            problems += changed_content(inputs.gram)
            found.checked.append(f"kernel {inputs.gram.where}")
        found.images = bool(problems)
        found.damaged += problems
        found.checked.append(f"images {inputs.images.prefix}")
        for gram in inputs.stores:
            for problem in audit.verify(gram):
                if problem.is_harmless:
                    found.harmless.append(problem.text)
                    continue
                found.damaged.append(problem.text if problem.key in problem.text else f"{problem.key}: {problem.text}")
                found.gram.append((gram, problem))
            what = "tiles" if inputs.plan.stored else "diagonals (of this run no tile is stored)"
            found.checked.append(f"{what} {gram.where}")
        for prefix in _CHECKPOINTS:
            for key in damaged_entries(inputs.store, prefix):
                found.states.append(key)
                found.damaged.append(
                    f"{key} in {inputs.store.url} is damaged: what it held is computed again when it is needed"
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


def recheck(run: RunDir, inputs: Inputs, found: Findings, executor: Executor, tiles: int, rows: int, seed: int) -> None:
    """Compute random tiles, residuals and predictions again; what is wrong is added to `found`.

    Args:
        run: to check.
        inputs: of the run.
        found: by `verify`, with nothing damaged.
        executor: where rows of the kernel are computed.
        tiles: of each Gram store, at most.
        rows: training and test images at which the answers are checked.
        seed: of the choice.
    """
    if inputs.plan.stored:
        for one in recheck_tiles(inputs, tiles, seed):
            (found.damaged if one.wrong else found.checked).append(one.text)
            if one.gram is not None and one.problem is not None:
                found.gram.append((one.gram, one.problem))
                # Whatever was made from it is wrong as well.
                found.solves = list(run.config.predict.kernels) if run.receipt("solve") is not None else []
    if run.receipt("predict") is None or found.damaged:
        return
    predictions = read_predictions(run.path / "predictions.zarr", covariance=False)
    for name in predictions.kernels:
        for one in recheck_answers(inputs, restore(inputs, name, run), predictions, rows, seed, executor):
            (found.damaged if one.wrong else found.checked).append(one.text)
            if one.wrong and name not in found.solves:
                found.solves.append(name)


def discard_damaged(run: RunDir, inputs: Inputs | None, found: Findings) -> None:
    """Drop what cannot be trusted, so that the stages that made it run again."""
    if inputs is not None:
        for gram in inputs.stores:
            audit.repair(gram, [problem for store, problem in found.gram if store == gram])
    if found.images and inputs is not None:
        forget_images(inputs)
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


def clean(store: ObjectStore, delete: str | None, tell: Callable[[str], None]) -> None:
    """List what a store holds, and delete one Gram store, all unfinished ones, solver states, compiled programs, or litter.

    Args:
        store: to look after.
        delete: a Gram store's key, `unfinished`, `solves`, `compiled`, `litter`, or None to list only.
        tell: receives lines for people.

    Raises:
        ConfigError: if there is no such Gram store, or no store at all.
        HeldError: if a living run writes to it.
    """
    if not is_store(store):
        raise ConfigError(
            f"there is no store of ntkpipe at {store.url}: {_lies(store)}. Name the folder or bucket of one"
        )
    if delete is None:
        _list(store, tell)
        return
    if delete == "litter":
        gone = store.sweep(older_than=60.0)
        tell(f"{len(gone)} leftovers of killed writers removed")
        _forget_marks(store, tell)
        return
    if delete == "compiled":
        tell(
            f"compiled programs removed, {human_bytes(_remove(store, _COMPILED))} freed: the next run compiles them again"
        )
        return
    if delete == "solves":
        for prefix in SOLVES:
            for key in list(store.list(prefix)):
                store.delete(key)
        tell("bases, eigenvectors and vectors of cg removed; predictions that were made from them stay")
        return
    infos = list(list_gram_stores(store))
    chosen = [i for i in infos if i.name == delete or (delete == "unfinished" and i.tiles_done < i.tiles_total)]
    if not chosen and delete != "unfinished":
        known = ", ".join(i.name for i in infos) or "none"
        raise ConfigError(
            f"delete={delete}: no such Gram store in {store.url}; it has {known} (or: unfinished, solves, compiled, litter)"
        )
    for info in chosen:
        freed = delete_gram_store(store, info.name)
        tell(f"Gram store {info.name} deleted, {human_bytes(freed)} freed")


def _lies(store: ObjectStore) -> str:
    """What is at an address where there is no store, in words."""
    folder = local_folder(store.url)
    if folder is None:
        names = store.folders()
    elif not os.path.isdir(folder):
        return "nothing is there"
    else:
        names = sorted(os.listdir(folder))
    return f"it holds {', '.join(names[:4])}{', ...' * (len(names) > 4)}" if names else "it is empty"


def _remove(store: ObjectStore, prefix: str) -> int:
    """Delete all objects below; their bytes."""
    found = dict(store.sizes(prefix))
    store.delete_all(found)
    return sum(found.values())


def _forget_marks(store: ObjectStore, tell: Callable[[str], None]) -> None:
    """Remove the marks of killed runs. A node that joins a run looks for its mark: while one is at work, all stay."""
    marks = list(store.list(_MARKS))
    if not marks:
        return
    if any(is_running(store, key) for key, _ in read_boards(store)):
        tell(f"{len(marks)} marks of runs on clusters stay: a run is at work")
        return
    store.delete_all(marks)
    tell(f"{len(marks)} marks of killed runs on clusters removed")


def _list(store: ObjectStore, tell: Callable[[str], None]) -> None:
    tell(f"Gram stores in {store.url}")
    for info in list_gram_stores(store):
        what = "damaged manifest"
        if info.identity is not None:
            i = info.identity
            layers = json.dumps(i.spec)
            part = "" if i.symmetry == "none" else f", {i.symmetry} part under flips"
            what = f"{i.n_train:,} + {i.n_test:,} images{part}, {i.stored_dtype}, tile {i.edge}, "
            what += layers[:60] + "..." * (len(layers) > 60)
        tell(
            f"  {info.name}  {human_bytes(info.nbytes):>8}  {info.tiles_done:,} of {info.tiles_total:,} tiles  last used "
            f"{info.last_used or 'unknown'}  {what}"
        )
    sizes = {
        "prepared images": sum(size for p in prepared_prefixes(store) for _, size in store.sizes(p + "/")),
        "solver states": sum(size for prefix in SOLVES for _, size in store.sizes(prefix)),
        "compiled programs": sum(size for _, size in store.sizes(_COMPILED)),
    }
    for name, size in sizes.items():
        tell(f"  {name}: {human_bytes(size)}")
    if foreign := store.foreign():
        tell(f"  files of other programs: {len(foreign):,}, such as {foreign[0]}; they are neither read nor removed")
    tell(f"delete one with: ntkpipe clean store.url={store.url} delete=KEY (or unfinished, solves, compiled, litter)")


def _require_same_formulas(run: RunDir, inputs: Inputs) -> None:
    """Refuse a run whose tiles this version would compute otherwise: it has no others to compare them with.

    Raises:
        IdentityError: saying what still works.
    """
    stored = str((run.receipt("gram") or {}).get("store", ""))
    # The name of a store is made from all that determines its tiles.
    if (
        inputs.job is None
        or not stored
        or stored.rstrip("/").rpartition("/")[2] == inputs.gram.where.rpartition("/")[2]
    ):
        return
    raise IdentityError(
        f"{run.path} was computed by kernel formulas of another version of ntkpipe (its tiles are in {stored}; this version has "
        f"formulas {FORMULA_VERSION}), which this one cannot check. Its predictions, exports and figures are read as before. For "
        "numbers by the formulas of now, run the same settings in a run_dir of its own"
    )


def try_reopen(run: RunDir) -> Inputs | None:
    """The inputs of a stored run, or None if its images are gone or damaged; nothing is written.

    Raises:
        StoreError: if its store is not there at all.
    """
    run.require_store()
    try:
        return reopen(run)
    except NtkpipeError:
        return None
