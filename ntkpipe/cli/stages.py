"""The commands that compose a configuration, as functions of a configuration and a session."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ntkpipe.cli import describe as describing
from ntkpipe.cli import launch as launching
from ntkpipe.cli import phase as phases
from ntkpipe.cli import projecting, tuning
from ntkpipe.cli import sample as sampling
from ntkpipe.cli.folder import profiles
from ntkpipe.cli.session import Session
from ntkpipe.config import COMBINED, RunConfig
from ntkpipe.errors import ConfigError, IncompleteError, ReportError
from ntkpipe.events.event import PROGRESS, Emit, Event
from ntkpipe.events.lines import for_people
from ntkpipe.gram.from_config import check_kernel, kernel_spec
from ntkpipe.planning.choosing import choose
from ntkpipe.planning.measured import calibration_key
from ntkpipe.planning.rank import refuse_low_rank
from ntkpipe.planning.surroundings import plan_features_here, plan_given_here
from ntkpipe.propagation.summary import warnings_of_depth
from ntkpipe.report.drawing import can_draw
from ntkpipe.run import calibrate as calibrating
from ntkpipe.run.learning_curve import write_learning_curve
from ntkpipe.run.places import anchored, is_store
from ntkpipe.run.prepare import read_shapes
from ntkpipe.run.run_dir import RunDir
from ntkpipe.run.stages import RunAtWork
from ntkpipe.run.sweep import Sweep, sweep_axis, sweep_runs, write_table
from ntkpipe.sources.features import read_feature_shapes
from ntkpipe.sources.precomputed import describe_given, read_given_shapes
from ntkpipe.storage.store import open_store
from ntkpipe.tasks import stopping
from ntkpipe.tiles.layout import check_name

# The layers of a family do not depend on the shape, except for pooling.
_ANY_IMAGE = (32, 32, 3)


def echo(line: str) -> None:
    """Print a line of progress at once, also into a pipe, and check for a stop request."""
    print(line, file=sys.stderr, flush=True)
    stopping.check()


def listener() -> Emit:
    """Return a listener that prints events as lines on the standard error.

    In a terminal, one progress line is updated in place. The listener checks for a stop request at each progress event.
    """
    shown = for_people(echo)

    def emit(event: Event) -> None:
        shown(event)
        if event.kind in PROGRESS:
            stopping.check()

    return emit


def runs_at_work(config: RunConfig, session: Session) -> Iterator[RunAtWork]:
    """Yield the runs of a configuration, one for each depth or training size of a sweep.

    The executor starts when a stage first needs it. In a sweep over depths, evaluations of the first run also give the
    tiles of the other runs.
    """
    config = anchored(config)
    # Check before reading any folder, because an error about another run there would hide a misspelt setting.
    for one in sweep_runs(config):
        check_kernel(one.kernel)
    open_store(config.store.url)
    if config.store.name is not None:
        check_name(config.store.name)
    runs, axis = sweep_runs(session.join_cluster(config)), sweep_axis(config)
    if axis == "depth":
        _warn_of_depths(runs)
    if axis is not None:
        Sweep.begin(config)
    for k, one in enumerate(runs):
        if len(runs) > 1:
            echo(f"\n{Path(one.run_dir).name.replace('=', ' ')}  ->  {one.run_dir}")
        else:
            echo(f"folder   {one.run_dir}")
        siblings = runs[k + 1 :] if axis == "depth" else ()
        yield _at_work(RunDir.create(one), session, siblings)


def _at_work(run: RunDir, session: Session, siblings: tuple[RunConfig, ...]) -> RunAtWork:
    # The executor uses the completed configuration, because `cluster=auto` is resolved when the data is known.
    made = RunAtWork(run, lambda: session.executor(made.run.config), listener(), siblings)
    return made


def _warn_of_depths(runs: Iterable[RunConfig]) -> None:
    """Print warnings about depths for which the precision is insufficient, before anything is computed."""
    for one in runs:
        for text in warnings_of_depth(kernel_spec(one.kernel, _ANY_IMAGE), one.kernel.dtype):
            echo(f"warning  depth {one.kernel.depth}: {text}")


def run(config: RunConfig, session: Session) -> None:
    """Run all stages, and print the paths of the results.

    Raises:
        ReportError: if all predictions are finished but a report could not be drawn.
    """
    undrawn: list[str] = []
    for work in runs_at_work(config, session):
        folder = work.run.path
        page = (
            f"\nreport       {folder / 'report' / 'report.html'}{'   (figures beside it)' if can_draw() else ''}"
            if work.run.config.report
            else ""
        )
        try:
            with work.at_work():
                if not work.all():
                    continue
        except ReportError as error:
            undrawn.append(str(error))
            page = ""
        print(
            f"\npredictions  {folder / 'predictions.zarr'}   (xarray.open_zarr, or ntkpipe export)\n"
            f"metrics      {folder / 'metrics.json'}{page}"
        )
    sweep = Sweep.find(config.run_dir)
    if sweep is not None and sweep.axis == "train_size" and not config.report:
        print(
            f"\nlearning     ntkpipe report run_dir={sweep.path} writes the learning curve (report=false left it out)"
        )
    elif sweep is not None:
        try:
            print("\n" + "\n".join(summarise(sweep)))
        except ReportError as error:
            undrawn.append(str(error))
    if undrawn:
        raise ReportError("\n".join(undrawn))


def summarise(sweep: Sweep, folder: Path | None = None) -> list[str]:
    """Write a comparison of the runs of a sweep into its folder or another one, and return the lines to print."""
    if sweep.axis == "train_size":
        return write_learning_curve(sweep, folder)
    return write_table(sweep, folder) if sweep.axis else []


def plan(config: RunConfig, session: Session, **own: str | None) -> None:
    """Print the plan for this machine or the machines of a profile, without computing or starting anything."""
    del session
    first, *others = sweep_runs(config)
    if sizes := config.predict.train_sizes:
        *others, first = sweep_runs(config)  # the tiles of the largest run include those of all others
        print(f"sizes       {', '.join(f'{n:,}' for n in sizes)}: the largest alone")
    if first.kernel.kind == "gram":
        gram, shapes = read_given_shapes(first)
        first, chosen = choose(first, shapes)
        print("\n".join([*chosen, describe_given(gram, shapes)]))
        print(plan_given_here(first, shapes, open_store(first.store.url), dtype=gram.dtype, edge=gram.edge))
        return
    if first.kernel.kind == "features":
        features, shapes = read_feature_shapes(first)
        first, chosen = choose(first, shapes)
        refuse_low_rank(first, shapes.used_train, features.count, "the number of features")
        print("\n".join(chosen))
        print(plan_features_here(first, shapes, open_store(first.store.url), features))
        return
    shapes, store = read_shapes(first)
    depths = [] if sizes else others
    first, chosen = choose(first, shapes, depths)
    print("\n".join(chosen))
    if depths:
        print(f"depths      {len(depths) + 1}: solver and variances of the first")
    print("\n".join(projecting.lines(first, shapes, store, depths, own, profiles())))


def calibrate(config: RunConfig, session: Session) -> None:
    """Measure this machine for plans, and store the record."""
    first, *_ = sweep_runs(config)
    if first.kernel.kind in ("gram", "features", "empirical", *COMBINED):
        raise ConfigError(
            f"kernel={first.kernel.kind} is not a single infinite network, so its pairs cannot be timed: calibrate "
            "with another kernel"
        )
    shapes, store = read_shapes(first)
    if first.cluster.kind == "auto":  # plans of large runs need the numbers of local workers
        first = dataclasses.replace(first, cluster=dataclasses.replace(first.cluster, kind="local"))
    made = calibrating.calibrate(first, shapes, store, lambda: session.executor(first), echo)
    print(f"{made.describe()}\nstored in {store.url}/{calibration_key(first)}; ntkpipe plan uses it")


def validate(config: RunConfig, session: Session) -> None:
    """Train finite networks, compare them with the infinite one, and report the claims of the theory that hold."""
    for work in runs_at_work(config, session):
        with work.at_work():
            folder = work.validate()
        print(f"\nvalidation   {folder / 'validation.json'}   (validation.zarr and figures beside it)")


def _require_solved(config: RunConfig) -> None:
    """Refuse to predict in a run that is not solved."""
    RunDir.open(config.run_dir).require("solve")


def _require_tiles(config: RunConfig) -> None:
    """Refuse to solve a new run if no store exists; otherwise another run may have stored its tiles."""
    url = config.store.url
    if (Path(config.run_dir) / "run.json").exists() or config.kernel.kind in ("gram", "features"):
        return
    if not is_store(open_store(url)):
        raise IncompleteError(
            f"run_dir={config.run_dir} is not a run, and no tiles are stored at {url}: run ntkpipe gram with the same "
            "settings first, or ntkpipe run for all stages"
        )


def _stage(name: str, require: Callable[[RunConfig], None] | None = None) -> Callable[[RunConfig, Session], None]:
    """The command of one stage. `require` raises for a run that lacks what the stage needs, before anything is written."""

    def command(config: RunConfig, session: Session, **own: str | None) -> None:
        del own  # belongs to `ntkpipe predict data.new=FILE`, which composes no run
        if require is not None:
            for one in sweep_runs(anchored(config)):
                require(one)
        for work in runs_at_work(config, session):
            with work.at_work():
                getattr(work, name)()

    command.__doc__ = f"The {name} stage."
    return command


FUNCTIONS: dict[str, Callable[..., None]] = {
    "run": run,
    "plan": plan,
    "calibrate": calibrate,
    "describe": describing.describe,
    "phase": phases.show_phase,
    "sample": sampling.sample,
    "tune": tuning.tune,
    "gram": _stage("gram"),
    "solve": _stage("solve", _require_tiles),
    "predict": _stage("predict", _require_solved),
    "validate": validate,
    "launch": launching.launch,
}
"""The function of a command; it takes a configuration, a session, and the command's own settings as keyword
arguments."""
