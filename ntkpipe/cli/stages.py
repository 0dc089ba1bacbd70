"""The composed commands as functions of a configuration and a session."""

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
from ntkpipe.errors import ConfigError, ReportError
from ntkpipe.events.event import PROGRESS, Emit, Event
from ntkpipe.events.lines import for_people
from ntkpipe.gram.from_config import check_kernel, kernel_spec
from ntkpipe.planning.choosing import choose
from ntkpipe.planning.measured import calibration_key
from ntkpipe.planning.rank import refuse_low_rank
from ntkpipe.planning.surroundings import plan_features_here, plan_given_here
from ntkpipe.propagation.summary import warnings_of_depth
from ntkpipe.run import calibrate as calibrating
from ntkpipe.run.learning_curve import write_learning_curve
from ntkpipe.run.places import anchored
from ntkpipe.run.prepare import read_shapes
from ntkpipe.run.run_dir import RunDir
from ntkpipe.run.stages import RunAtWork
from ntkpipe.run.sweep import Sweep, sweep_axis, sweep_runs, write_table
from ntkpipe.sources.features import read_feature_shapes
from ntkpipe.sources.precomputed import describe_given, read_given_shapes
from ntkpipe.storage.store import open_store
from ntkpipe.tasks import stopping
from ntkpipe.tiles.layout import check_name

# What the layers of a family are does not depend on it, but for their pooling.
_ANY_IMAGE = (32, 32, 3)


def echo(line: str) -> None:
    """A line of progress, at once, also into a pipe; a safe point."""
    print(line, file=sys.stderr, flush=True)
    stopping.check()


def listener() -> Emit:
    """Events as lines on the standard error; in a terminal, progress as one line that is updated in place. Safe points."""
    shown = for_people(echo)

    def emit(event: Event) -> None:
        shown(event)
        if event.kind in PROGRESS:
            stopping.check()

    return emit


def runs_at_work(config: RunConfig, session: Session) -> Iterator[RunAtWork]:
    """The runs that a configuration stands for, one for each of `kernel.readout_depths`; hold each while it is at work.

    The executor starts when a stage first asks for it. The tiles of the runs that follow come out of the evaluations of the
    first.
    """
    config = anchored(config)
    # Before any folder is looked at: that it holds another run would hide a misspelt setting.
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
    # The executor is that of the configuration as it is by then: `cluster=auto` is chosen when the data is known.
    made = RunAtWork(run, lambda: session.executor(made.run.config), listener(), siblings)
    return made


def _warn_of_depths(runs: Iterable[RunConfig]) -> None:
    """Say of a sweep over depth where the precision is no longer enough, before anything is computed."""
    for one in runs:
        for text in warnings_of_depth(kernel_spec(one.kernel, _ANY_IMAGE), one.kernel.dtype):
            echo(f"warning  depth {one.kernel.depth}: {text}")


def run(config: RunConfig, session: Session) -> None:
    """All stages.

    Raises:
        ReportError: if everything is predicted, of a sweep in every run, and something could not be drawn.
    """
    undrawn: list[str] = []
    for work in runs_at_work(config, session):
        folder = work.run.path
        page = (
            f"\nreport       {folder / 'report' / 'report.html'}   (figures beside it)"
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
    if (sweep := Sweep.find(config.run_dir)) is not None and (config.report or sweep.axis != "train_size"):
        try:
            print("\n" + "\n".join(summarise(sweep)))
        except ReportError as error:
            undrawn.append(str(error))
    if undrawn:
        raise ReportError("\n".join(undrawn))


def summarise(sweep: Sweep, folder: Path | None = None) -> list[str]:
    """Write what the runs of a sweep have found, side by side, into its own or another folder; lines for people."""
    if sweep.axis == "train_size":
        return write_learning_curve(sweep, folder)
    return write_table(sweep, folder) if sweep.axis else []


def plan(config: RunConfig, session: Session, **own: str | None) -> None:
    """Print the plan, here or on the machines of a profile; computes nothing and starts nothing."""
    del session
    first, *others = sweep_runs(config)
    if sizes := config.predict.train_sizes:
        *others, first = sweep_runs(config)  # the largest has the tiles of all
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
    """Measure this machine for plans, and keep the record in the store."""
    first, *_ = sweep_runs(config)
    if first.kernel.kind in ("gram", "features", "empirical", *COMBINED):
        raise ConfigError(
            f"kernel={first.kernel.kind} is no single infinite network whose pairs could be measured: calibrate with another kernel"
        )
    shapes, store = read_shapes(first)
    if first.cluster.kind == "auto":  # plans of large runs want it
        first = dataclasses.replace(first, cluster=dataclasses.replace(first.cluster, kind="local"))
    made = calibrating.calibrate(first, shapes, store, lambda: session.executor(first), echo)
    print(f"{made.describe()}\nkept in {store.url}/{calibration_key(first)}; ntkpipe plan uses it")


def validate(config: RunConfig, session: Session) -> None:
    """Train finite networks beside the infinite one, and say which of the theory's claims hold at their widths."""
    for work in runs_at_work(config, session):
        with work.at_work():
            folder = work.validate()
        print(f"\nvalidation   {folder / 'validation.json'}   (validation.zarr and figures beside it)")


def _stage(name: str) -> Callable[[RunConfig, Session], None]:
    def command(config: RunConfig, session: Session, **own: str | None) -> None:
        del own  # of `ntkpipe predict data.new=FILE`, which composes no run
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
    "solve": _stage("solve"),
    "predict": _stage("predict"),
    "validate": validate,
    "launch": launching.launch,
}
"""What runs a command: of a configuration, a session, and the command's own settings as keyword arguments."""
