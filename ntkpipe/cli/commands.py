"""Every command, with its description and its own settings. Help, completion and the commands read this table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ntkpipe.planning.machine import FIGURES


@dataclass(frozen=True)
class Own:
    """A setting that belongs to one command and not to a run.

    Args:
        text: what it means.
        default: the value if the setting is not given; None for no value.
    """

    text: str
    default: str | None = None


@dataclass(frozen=True)
class Command:
    """One word after `ntkpipe`.

    Args:
        text: what it does, a line.
        example: words that it is called with.
        own: settings that belong to this command only.
        composes: whether it takes the settings of a run as well.
    """

    text: str
    example: str = ""
    own: Mapping[str, Own] = field(default_factory=dict)
    composes: bool = False

    def defaults(self) -> dict[str, str | None]:
        """Defaults of the command's own settings."""
        return {name: own.default for name, own in self.own.items()}


_RUN_DIR = Own("folder of the run, or a folder that holds several runs")
_STORE = Own("the run's store, if it was moved since the run")

COMMANDS: dict[str, Command] = {
    "run": Command(
        "run all stages: read the data, compute the kernel, solve, predict, and write a report",
        "experiment=digits_fcn",
        composes=True,
    ),
    "plan": Command(
        "show tiles, flops, bytes, memory and projected time of a run, here or on a cluster; computes nothing",
        "experiment=digits_fcn",
        {
            "cluster.profile": Own(
                "machines to plan for: the name of a profile, or your own YAML file; `cluster/profile` means the same"
            ),
            "cluster/profile": Own("the same"),
            "plan.sizes": Own("training sizes to plan for, such as [50000,1000000]; needs a profile"),
            "plan.passes": Own("passes over the matrix that the solver takes; null estimates them"),
            "plan.figures": Own("list every figure that the plan uses, with its origin", "false"),
            **{f"profile.{name}": Own("a number that replaces the profile's figure") for name in FIGURES},
        },
        composes=True,
    ),
    "calibrate": Command(
        "measure the rates of this machine, for more accurate plans; takes a minute",
        "experiment=digits_fcn",
        composes=True,
    ),
    "describe": Command(
        "print the kernel's layers, its diagram, or its spec as a file",
        "kernel=myrtle10 image_shape=[32,32,3]",
        {
            "image_shape": Own("[height,width,channels] or [features]; null reads the shape from the data set"),
            "format": Own(
                "`table`; `json` or `yaml` for the layers in the format that `kernel=spec kernel.path=FILE` reads; or `svg`, a diagram",
                "table",
            ),
        },
        composes=True,
    ),
    "phase": Command(
        "analyse signal propagation through the layers as text, or draw a phase diagram",
        "kernel.activation=tanh phase.w_std=[0.5,3,60] phase.b_std=[0,0.7,40]",
        {
            "format": Own("`text` or `json`", "text"),
            "path": Own("folder of the phase diagram", "./phase"),
            "image_shape": Own("[height,width,channels]", "[32,32,3]"),
            "phase.w_std": Own("horizontal axis of the phase diagram: [low,high,count]"),
            "phase.b_std": Own("vertical axis of the phase diagram: [low,high,count]"),
            "phase.block": Own(
                "[first,end]: the layers of the repeated block, for networks with residual sums, layer norm or attention"
            ),
            "phase.repetitions": Own("number of repetitions of the block", "100"),
            "phase.input_variance": Own("variance of the inputs", "1"),
        },
        composes=True,
    ),
    "tune": Command(
        "choose the kernel's numbers by marginal likelihood, leave-one-out error or held-out error on some training "
        "points",
        "tune.w_std=[0.5,3] tune.b_std=[0.01,1] tune.depth=[1,2,3] tune.by=likelihood",
        {
            **{
                f"tune.{name}": Own(f"`kernel.{name}`: two numbers give a range; a longer list gives the values to try")
                for name in ("w_std", "b_std", "length_scale")
            },
            **{
                f"tune.{name}": Own(f"`kernel.{name}`: whole numbers, each of which is tried")
                for name in ("depth", "width", "blocks", "widen", "pool_radius")
            },
            "tune.weights": Own("for kernel=sum: [low,high] of every weight except the first, which is 1"),
            "tune.ridge": Own(
                "[low,high] of the relative ridge, which is always searched; it needs no further kernels", "[1e-8,1]"
            ),
            "tune.by": Own("`likelihood`, `loo` or `held_out`", "likelihood"),
            "tune.kernel": Own(
                "`nngp` or `ntk`; null takes nngp for the likelihood, otherwise the first of predict.kernels"
            ),
            "tune.size": Own("largest number of training points: the first ones of the run", "1000"),
            "tune.held_out": Own(
                "for `by=held_out`: the share (below 1) or number of these points that are held out and predicted",
                "0.2",
            ),
            "tune.trials": Own("number of kernels to try, if ranges are searched", "40"),
            "tune.seed": Own("seed of the search", "0"),
            "path": Own("folder for the results; trials stored there are reused", "./tune"),
        },
        composes=True,
    ),
    "gram": Command("compute the tiles of the Gram matrices", "experiment=digits_fcn", composes=True),
    "solve": Command("run the solver on stored tiles", "experiment=digits_fcn", composes=True),
    "predict": Command(
        "make predictions and metrics from a finished solve, or predict new points with a finished run",
        "run_dir=DIR data.new=FILE",
        {
            "data.new": Own(
                "new points to predict with the run in run_dir: .csv, .parquet, .npy or .npz; for kernel=gram their "
                "kernel with the training points, .npy or a Zarr array"
            ),
            "data.new_diagonal": Own("for kernel=gram: k(x, x) of the new points, .npy; variances need it"),
            "path": Own("file for the predictions, .csv, .parquet, .npz or .zarr; null is FILE-predictions.csv"),
            "overwrite": Own("replace a file that is there", "false"),
        },
        composes=True,
    ),
    "validate": Command(
        "train finite networks and compare them with the infinite one: does the theory hold at this width?",
        "experiment=digits_fcn finite.widths=[64,128,256] finite.networks=20 data.train_size=128",
        composes=True,
    ),
    "launch": Command(
        "write a job file for a scheduler with this configuration",
        "experiment=digits_fcn cluster/launch=slurm cluster.launch.nodes=4",
        {"submit": Own("submit the job as well", "false")},
        composes=True,
    ),
    "status": Command(
        "show what is done, what is left, the rate and the remaining time",
        "run_dir=DIR",
        {
            "run_dir": _RUN_DIR,
            "store.url": Own("a store, instead of a run: shows every run that writes there"),
            "run": Own("name of one of these runs"),
            "watch": Own("print changes until the run is finished", "false"),
            "every": Own("seconds between two updates", "5"),
        },
    ),
    "export": Command(
        "write the predictions to a file",
        "run_dir=DIR format=csv path=FILE",
        {
            "run_dir": _RUN_DIR,
            "format": Own("`parquet`, `csv`, `npz` or `zarr`", "parquet"),
            "path": Own("path of the file; null is predictions.FORMAT in the run's folder"),
            "overwrite": Own("replace a file that is there", "false"),
        },
    ),
    "report": Command(
        "draw the figures and write the HTML report",
        "run_dir=DIR",
        {
            "run_dir": _RUN_DIR,
            "store.url": _STORE,
            "path": Own("folder for figures and report; null is `report` in the run's folder"),
        },
    ),
    "spectrum": Command(
        "estimate eigenvalues, label energy and learning curves from stored tiles, without the n^3 cost of an "
        "eigendecomposition",
        "run_dir=DIR probes=32 top=200",
        {
            "run_dir": Own("folder of a run that has finished its Gram stage"),
            "store.url": _STORE,
            "kernel": Own("`ntk`, `nngp`, ...; null takes each kernel that the run predicts with"),
            "probes": Own("number of random vectors, at least 2; more vectors make the errors smaller", "32"),
            "top": Own("number of leading eigenvalues, for more than 2,000 points", "200"),
            "sizes": Own(
                "training sizes below the run's for which errors are predicted, such as [500,1000]; null chooses a few"
            ),
            "path": Own("folder for the figure and the tables; null is `spectrum` in the run's folder"),
        },
    ),
    "compare": Command(
        "compare runs in a table, best first; with path=FOLDER also as CSV, LaTeX, HTML and a figure",
        "runs/* path=comparison",
        {"path": Own("folder for `compare.csv`, `.tex`, `.html`, `.png` and `.svg`; null writes no files")},
    ),
    "verify": Command(
        "check every stored object, recompute random tiles and residuals, and repair damage",
        "run_dir=DIR repair=false",
        {
            "run_dir": _RUN_DIR,
            "store.url": _STORE,
            "repair": Own("regenerate what is damaged", "true"),
            "tiles": Own("number of tiles to recompute", "3"),
            "rows": Own("number of rows of residuals and predictions to recompute", "16"),
            "seed": Own("seed of the random choice; null draws a seed"),
        },
    ),
    "clean": Command(
        "list Gram stores and leftovers, and delete them",
        "store.url=DIR",
        {
            "store.url": Own("folder or bucket", "./store"),
            "delete": Own("KEY of a store, or `unfinished`, `solves`, `networks`, `compiled`, `litter`"),
        },
    ),
    "sample": Command(
        "sample the weight posterior of a finite network and compare it with the infinite one",
        "kernel=fcn finite.width=1024 data.train_size=100 sample.noise=0.1",
        {
            "finite.width": Own(
                "width of the narrowest hidden layer, which scales all others; null takes the kernel's widths"
            ),
            "sample.noise": Own("noise variance of the targets", "0.1"),
            "sample.count": Own("number of samples", "1000"),
            "sample.method": Own("`importance` (weighted draws from the prior), `pcn` (chains), or `auto`", "auto"),
            "sample.chains": Own("for `pcn`: number of chains", "4"),
            "sample.warmup": Own("warm-up steps of a chain, in which the step size is adapted", "500"),
            "sample.thin": Own("steps of a chain per sample", "5"),
            "sample.piece": Own("number of samples, or warm-up steps, that are computed and stored together", "50"),
            "sample.seed": Own("seed of all random numbers", "0"),
            "format": Own("`table` or `json`", "table"),
        },
        composes=True,
    ),
    "catapult": Command(
        "train a two-layer linear network at a large learning rate",
        "width=512 rate=2.5",
        {
            "width": Own("number of hidden units", "512"),
            "rate": Own("learning rate times the initial curvature: lazy below 2, catapult from 2 to 4", "2.5"),
            "f0": Own("initial output", "0.8"),
            "lambda0": Own("initial curvature", "2"),
            "target": Own("target of the training point", "0"),
            "max_steps": Own("maximum number of steps", "1000000"),
            "format": Own("`table` or `json`", "table"),
        },
    ),
    "help": Command("explain a command, a group of settings or one setting", "kernel.depth", {}),
    "completion": Command("print a script for shell completion of commands, settings and choices with TAB", "bash"),
}
"""All commands by name, in the order of the help text."""
