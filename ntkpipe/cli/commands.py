"""Every command: what it does, and the settings that are its own and no run's. Help, completion and the commands read this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ntkpipe.planning.machine import FIGURES


@dataclass(frozen=True)
class Own:
    """A setting of a command alone.

    Args:
        text: what it means.
        default: where nothing is said; None is none.
    """

    text: str
    default: str | None = None


@dataclass(frozen=True)
class Command:
    """One word after `ntkpipe`.

    Args:
        text: what it does, a line.
        example: words that it is called with.
        own: settings of the command alone.
        composes: whether it takes the settings of a run as well.
    """

    text: str
    example: str = ""
    own: Mapping[str, Own] = field(default_factory=dict)
    composes: bool = False

    def defaults(self) -> dict[str, str | None]:
        """Of its own settings."""
        return {name: own.default for name, own in self.own.items()}


_RUN_DIR = Own("folder of the run, or of several")
_STORE = Own("where the run's store is, if it is not where the run left it")

COMMANDS: dict[str, Command] = {
    "run": Command(
        "all stages: data in, predictions, figures and a report out", "experiment=digits_fcn", composes=True
    ),
    "plan": Command(
        "tiles, flops, bytes, memory and projected time of a run, here or on a cluster; computes nothing",
        "experiment=digits_fcn",
        {
            "cluster.profile": Own(
                "machines to plan on: a name, or a YAML file of one's own; `cluster/profile` is the same"
            ),
            "cluster/profile": Own("the same"),
            "plan.sizes": Own("numbers of training points to plan for, such as [50000,1000000]; needs a profile"),
            "plan.passes": Own("passes over the matrix that the solver takes; none is estimated"),
            "plan.figures": Own("list every figure that the plan rests on, and its origin", "false"),
            **{f"profile.{name}": Own("a number in place of the profile's") for name in FIGURES},
        },
        composes=True,
    ),
    "calibrate": Command("measure this machine for plans; takes a minute", "experiment=digits_fcn", composes=True),
    "describe": Command(
        "the kernel's layers, or its spec as a file",
        "kernel=myrtle10 image_shape=[32,32,3]",
        {
            "image_shape": Own("[height,width,channels] or [features]; none looks at the data set"),
            "format": Own(
                "`table`, or `json` or `yaml`: the layers as `kernel=spec kernel.path=FILE` reads them", "table"
            ),
        },
        composes=True,
    ),
    "phase": Command(
        "signals through the layers as text, or a phase diagram as a figure with its numbers",
        "kernel.activation=tanh phase.w_std=[0.5,3,60] phase.b_std=[0,0.7,40]",
        {
            "format": Own("`text` or `json`", "text"),
            "path": Own("folder of the figure", "./phase"),
            "image_shape": Own("[height,width,channels]", "[32,32,3]"),
            "phase.w_std": Own("horizontal axis of a diagram: [low,high,count]"),
            "phase.b_std": Own("its vertical axis: [low,high,count]"),
            "phase.block": Own("[first,end]: layers that are repeated, for networks that are not plain"),
            "phase.repetitions": Own("of the block", "100"),
            "phase.input_variance": Own("of the inputs", "1"),
        },
        composes=True,
    ),
    "tune": Command(
        "numbers of the kernel chosen by marginal likelihood, leave-one-out or held-out error on some training points",
        "tune.w_std=[0.5,3] tune.b_std=[0.01,1] tune.depth=[1,2,3] tune.by=likelihood",
        {
            **{
                f"tune.{name}": Own(f"`kernel.{name}`: two numbers are a range, more are tried one by one")
                for name in ("w_std", "b_std", "length_scale")
            },
            **{
                f"tune.{name}": Own(f"`kernel.{name}`: all of these whole numbers are tried")
                for name in ("depth", "width", "blocks", "widen", "pool_radius")
            },
            "tune.weights": Own("of kernel=sum: [low,high] of every weight but the first, which is 1"),
            "tune.ridge": Own("[low,high] of the relative ridge, which costs nothing", "[1e-8,1]"),
            "tune.by": Own("`likelihood`, `loo` or `held_out`", "likelihood"),
            "tune.kernel": Own("`nngp` or `ntk`; none is nngp for the likelihood, else the first of predict.kernels"),
            "tune.size": Own("training points, the first ones of the run", "1000"),
            "tune.held_out": Own("of `held_out`, the share of these points that is predicted", "0.2"),
            "tune.trials": Own("kernels to try, where ranges are searched", "40"),
            "tune.seed": Own("of the search", "0"),
            "path": Own("folder of what is found, and of the trials that are found again", "./tune"),
        },
        composes=True,
    ),
    "gram": Command("the Gram tiles", "experiment=digits_fcn", composes=True),
    "solve": Command("the solver's stage, on stored tiles", "experiment=digits_fcn", composes=True),
    "predict": Command(
        "predictions and metrics, from a finished solve; or new points by a finished run",
        "run_dir=DIR data.new=FILE",
        {
            "data.new": Own(
                "new points, .csv, .parquet, .npy or .npz: those alone are predicted, by the run in run_dir; of kernel=gram their "
                "kernel with the training points, .npy or a Zarr array"
            ),
            "data.new_diagonal": Own("of kernel=gram, k(x, x) of the new points, .npy: variances need it"),
            "path": Own("of their predictions, .csv, .parquet, .npz or .zarr; none is FILE-predictions.csv"),
            "overwrite": Own("replace a file that is there", "false"),
        },
        composes=True,
    ),
    "validate": Command(
        "finite networks trained beside the infinite one: does the theory hold for this width?",
        "experiment=digits_fcn finite.widths=[64,128,256] finite.networks=20 data.train_size=128",
        composes=True,
    ),
    "launch": Command(
        "a file for a scheduler, with this configuration",
        "experiment=digits_fcn cluster/launch=slurm cluster.launch.nodes=4",
        {"submit": Own("submit it as well", "false")},
        composes=True,
    ),
    "status": Command(
        "what is done, what is left, rate and time remaining",
        "run_dir=DIR",
        {
            "run_dir": _RUN_DIR,
            "store.url": Own("the store alone: every run that writes there"),
            "run": Own("name of one of them"),
            "watch": Own("print what changes, until the run is finished", "false"),
            "every": Own("seconds between two looks", "5"),
        },
    ),
    "export": Command(
        "predictions as a file",
        "run_dir=DIR format=csv path=FILE",
        {
            "run_dir": _RUN_DIR,
            "format": Own("`parquet`, `csv`, `npz` or `zarr`", "parquet"),
            "path": Own("of the file; none is predictions.FORMAT in the run's folder"),
            "overwrite": Own("replace a file that is there", "false"),
        },
    ),
    "report": Command(
        "figures and one HTML page",
        "run_dir=DIR",
        {
            "run_dir": _RUN_DIR,
            "store.url": _STORE,
            "path": Own("folder for them; none is `report` in the run's folder"),
        },
    ),
    "spectrum": Command(
        "eigenvalues, label energy and predicted learning curves from stored tiles, without n^3",
        "run_dir=DIR probes=32 top=200",
        {
            "run_dir": Own("folder of a run whose Gram stage is done"),
            "store.url": _STORE,
            "kernel": Own("`ntk`, `nngp`, ...; none is each that the run predicts with"),
            "probes": Own("random vectors, at least 2: more of them make smaller errors", "32"),
            "top": Own("leading eigenvalues wanted, of more than 2,000 points", "200"),
            "sizes": Own("training sizes to predict errors of, below the run's, such as [500,1000]; none is a few"),
            "path": Own("folder for the figure and the tables; none is `spectrum` in the run's folder"),
        },
    ),
    "compare": Command(
        "runs side by side, best first: a table, and with path=FOLDER as CSV, LaTeX, HTML and a figure",
        "runs/* path=comparison",
        {"path": Own("folder for `compare.csv`, `.tex`, `.html`, `.png` and `.svg`; none writes nothing")},
    ),
    "verify": Command(
        "check every stored object, recompute random tiles and residuals, mend",
        "run_dir=DIR repair=false",
        {
            "run_dir": _RUN_DIR,
            "store.url": _STORE,
            "repair": Own("make anew what is damaged", "true"),
            "tiles": Own("how many tiles are computed again", "3"),
            "rows": Own("how many rows of residuals and predictions are", "16"),
            "seed": Own("of the random choice; none draws one"),
        },
    ),
    "clean": Command(
        "list Gram stores and litter, and reclaim them",
        "store.url=DIR",
        {
            "store.url": Own("folder or bucket", "./store"),
            "delete": Own("KEY of a store, or `unfinished`, `solves`, `networks`, `compiled`, `litter`"),
        },
    ),
    "sample": Command(
        "the weight posterior of a finite network beside the infinite one",
        "kernel=fcn finite.width=1024 data.train_size=100 sample.noise=0.1",
        {
            "finite.width": Own("of the narrowest hidden layer, all others in proportion; none is the kernel's"),
            "sample.noise": Own("variance of the targets about the outputs", "0.1"),
            "sample.count": Own("samples", "1000"),
            "sample.method": Own("`importance` (weighted draws from the prior), `pcn` (chains), or `auto`", "auto"),
            "sample.chains": Own("of `pcn`", "4"),
            "sample.warmup": Own("steps of a chain before its samples, in which the step is adapted", "500"),
            "sample.thin": Own("steps per sample of a chain", "5"),
            "sample.piece": Own("samples, or steps of a warm-up, that are made and kept together", "50"),
            "sample.seed": Own("of everything", "0"),
            "format": Own("`table` or `json`", "table"),
        },
        composes=True,
    ),
    "catapult": Command(
        "two linear layers at large learning rates",
        "width=512 rate=2.5",
        {
            "width": Own("hidden units", "512"),
            "rate": Own("learning rate times the curvature at the start: lazy below 2, catapult from 2 to 4", "2.5"),
            "f0": Own("output at the start", "0.8"),
            "lambda0": Own("curvature at the start", "2"),
            "target": Own("of the training point", "0"),
            "max_steps": Own("after which it stops", "1000000"),
            "format": Own("`table` or `json`", "table"),
        },
    ),
    "help": Command("what a command, a group of settings or a setting means", "kernel.depth", {}),
    "completion": Command("a script that has a shell complete commands, settings and choices with TAB", "bash"),
}
"""By name, in the order of the help text."""
