"""Everything that a run needs."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

from ntkpipe.config.checks import at_least, choice
from ntkpipe.config.cluster import ClusterConfig
from ntkpipe.config.data import DataConfig
from ntkpipe.config.finite import FiniteConfig
from ntkpipe.config.gram import GridConfig, StoreConfig
from ntkpipe.config.kernel import GIVEN_KERNELS, KernelConfig
from ntkpipe.config.predict import PredictConfig
from ntkpipe.config.solver import SolverConfig
from ntkpipe.errors import ConfigError

OWN_RUN_DIR = "./runs/{name}"
"""The default folder of a run; the command line fills in the name."""


@dataclass(frozen=True)
class WatchConfig:
    """How others follow a run, besides the terminal and the run's own log.

    Args:
        reporters: experiment trackers to report to: any of `mlflow`, `wandb` and `tensorboard`. Each tracker takes
            its destination from its own environment variables.
        every: seconds between two updates of the run's status in the store.
    """

    reporters: tuple[str, ...] = ()
    every: float = 5.0

    def __post_init__(self) -> None:
        for name in self.reporters:
            choice("watch.reporters", name, ("mlflow", "wandb", "tensorboard"))
        at_least("watch.every", self.every, 0.1)


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run needs. `run_dir` holds its results; the Gram tiles live in `store.url`.

    Args:
        augment: `hflip` trains on every prepared image and its mirror image; `none` trains on the images alone.
        report: make figures and a report at the end.
        run_dir: folder of the run's results and finished stages. By default `runs/` with a name made of the data or
            the experiment, the kernel, and a key of the settings.
    """

    data: DataConfig = field(default_factory=DataConfig)
    kernel: KernelConfig = field(default_factory=KernelConfig)
    grid: GridConfig = field(default_factory=GridConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)
    finite: FiniteConfig = field(default_factory=FiniteConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    augment: str = "none"
    report: bool = True
    run_dir: str = OWN_RUN_DIR

    def __post_init__(self) -> None:
        choice("augment", self.augment, ("none", "hflip"))
        if not self.run_dir:
            raise ConfigError("run_dir is empty: name a folder")
        self._check_given()
        if self.predict.train_sizes:
            self._check_sizes()
        elif self.predict.theory:
            raise ConfigError(
                "predict.theory=true needs a learning curve: set predict.train_sizes=[...] too, or use ntkpipe "
                "spectrum run_dir=DIR on an existing run"
            )
        if self.augment == "hflip" and self.data.zca is not None:
            raise ConfigError(
                "augment=hflip flips prepared images, and whitening (data.zca) does not commute with flips"
            )
        converged_only = self.predict.times is not None and all(math.isinf(t) for t in self.predict.times)
        if self.solver.basis == "workers" and (self.predict.times is None or self.predict.dynamics != "gradient_flow"):
            raise ConfigError(
                "solver.basis=workers needs times that are known before the solve: set predict.times, with "
                "predict.dynamics=gradient_flow"
            )
        if self.solver.kind in ("cholesky", "cg") and not converged_only:
            raise ConfigError(
                f"solver={self.solver.kind} answers t = inf only: set predict.times=[inf] or solver=krylov"
            )
        if self.solver.kind == "flow" and (self.predict.times is None or math.inf in self.predict.times):
            raise ConfigError(
                "solver=flow integrates up to finite times: set predict.times, such as predict.times=[10,100,1000]"
            )
        if self.predict.loss != "squared":
            self._check_loss()
        self._check_selection()
        if self.solver.refine:
            self._check_refine()
        if self.kernel.kind == "empirical" and self.kernel.outputs == "full":
            self._check_full()
        if self.kernel.readout_depths and self.store.name is not None:
            raise ConfigError(
                "store.name names one Gram store, but each of kernel.readout_depths has its own: leave store.name out"
            )
        if self.kernel.dtype == "float32" and self.store.dtype == "float64":
            raise ConfigError("store.dtype=float64 would store float32 values: set kernel.dtype=float64 as well")

    def _check_loss(self) -> None:
        loss, solver = self.predict.loss, self.solver.kind
        if solver not in ("auto", "flow"):
            raise ConfigError(
                f"predict.loss={loss} needs solver=flow, and solver={solver} is for squared loss: leave "
                f"solver={solver} out"
            )
        if self.kernel.outputs == "full":
            raise ConfigError(f"predict.loss={loss} couples the outputs of a point: leave kernel.outputs=full out")
        if self.data.folds is not None:
            raise ConfigError(f"predict.loss={loss} has no closed form for cross-validation: leave data.folds out")

    def _check_refine(self) -> None:
        refine, times = f"solver.refine={self.solver.refine}", self.predict.times
        if self.kernel.kind == "gram":
            raise ConfigError(
                f"{refine} computes the tiles again in float64, and kernel=gram was given: give it in float64, and leave refine out"
            )
        if self.kernel.dtype == self.store_dtype == "float64":
            raise ConfigError(f"{refine} is for float32 tiles, and these are float64 already: leave it out")
        if self.predict.loss != "squared":
            raise ConfigError(
                f"{refine} is of t = inf, which predict.loss={self.predict.loss} has none of: leave it out"
            )
        if times is not None and not any(math.isinf(t) for t in times):
            raise ConfigError(
                f"{refine} is of the end of training, and predict.times={list(times)} are finite: add inf, or leave refine out"
            )

    def _check_selection(self) -> None:
        p = self.predict
        if p.selection == "none":
            return
        one_ridge, one_time = len(p.ridges) == 1, p.times is not None and len(p.times) == 1
        if p.selection == "loo" and p.times is not None and not any(math.isinf(t) for t in p.times):
            raise ConfigError("predict.selection=loo answers t = inf only: add inf to predict.times, or use held_out")
        if one_ridge and (one_time or p.selection == "loo"):
            raise ConfigError(
                f"predict.selection={p.selection} has only one ridge{' and one time' if one_time else ''} to choose "
                "from: give several, such as predict.ridges=[0,1e-5,1e-4,1e-3,1e-2,1e-1]"
                + (" or predict.times=null" if p.selection == "held_out" else "")
            )

    def _check_full(self) -> None:
        """Refuse settings that leave out points or need variances, because with all pairs of outputs a row is one output."""
        if self.predict.kernels == PredictConfig().kernels:
            object.__setattr__(self, "predict", dataclasses.replace(self.predict, kernels=("ntk",)))
        full = "kernel.outputs=full is the linearisation of one network"
        if self.predict.kernels != ("ntk",):
            raise ConfigError(
                f"predict.kernels={list(self.predict.kernels)}: {full}, whose kernel is the ntk. Its NNGP is the same "
                "for all outputs: use kernel.outputs=trace for it"
            )
        if self.predict.covariance != "none":
            raise ConfigError(
                f"predict.covariance={self.predict.covariance} is a covariance over networks, but {full}: use "
                "kernel.outputs=trace"
            )
        if self.predict.selection != "none":
            raise ConfigError(
                f"predict.selection={self.predict.selection} leaves out rows, which are outputs and not points with "
                "kernel.outputs=full: use kernel.outputs=trace"
            )
        if self.data.folds is not None or self.predict.theory:
            raise ConfigError(
                "data.folds and predict.theory need one row per point, but with kernel.outputs=full a row is one "
                "output: use kernel.outputs=trace"
            )

    def _check_sizes(self) -> None:
        sizes = f"predict.train_sizes={list(self.predict.train_sizes)}"
        if self.kernel.readout_depths:
            raise ConfigError(
                f"{sizes} and kernel.readout_depths are separate sweeps: to combine them use --multirun "
                "kernel.depth=1,3 with train_sizes"
            )
        if self.data.train_size is not None:
            raise ConfigError(f"{sizes} sets the training size: leave data.train_size out")
        if self.data.statistics == "subset":
            raise ConfigError(
                f"{sizes} needs points that are prepared in the same way for all sizes, which data.statistics=subset "
                "does not give: use data.statistics=full"
            )

    def _check_given(self) -> None:
        """Refuse settings that need images or layers for given matrices and features, which come with labels only."""
        kind = self.kernel.kind
        if (kind in GIVEN_KERNELS) != (self.data.kind == "labels"):
            raise ConfigError(
                f"kernel={kind} data={self.data.kind} do not fit together: kernel=gram and kernel=features need "
                "data=labels data.path=FILE.npz for their labels, and data=labels has no images for other kernels"
            )
        if kind not in GIVEN_KERNELS:
            if "gram" in self.predict.kernels:
                raise ConfigError("predict.kernels=[gram] is only for kernel=gram and kernel=features")
            return
        if self.predict.kernels == PredictConfig().kernels:
            object.__setattr__(self, "predict", dataclasses.replace(self.predict, kernels=("gram",)))
        if self.predict.kernels != ("gram",):
            raise ConfigError(
                f"predict.kernels={list(self.predict.kernels)}: the kernel of kernel={kind} is called gram"
            )
        if self.augment != "none":
            what = "matrix" if kind == "gram" else "features"
            raise ConfigError(
                f"augment=hflip flips images, but kernel={kind} has no images: give the {what} of the augmented set "
                "instead"
            )
        if kind == "gram":
            self._check_matrix()

    def _check_matrix(self) -> None:
        """Refuse settings that need more than the entries of a given matrix."""
        if self.store.gram != "stored" or self.store.name is not None:
            raise ConfigError(
                "store.gram and store.name are for tiles that ntkpipe computes, but kernel=gram is read in place: "
                "leave them out"
            )
        if self.predict.covariance == "full":
            raise ConfigError(
                "predict.covariance=full needs the kernel among test points, which kernel=gram does not have: use diagonal"
            )
        if self.predict.covariance == "diagonal" and self.kernel.test_diagonal is None:
            raise ConfigError(
                "predict.covariance=diagonal needs k(x, x) of the test points: kernel.test_diagonal=FILE.npy"
            )

    @property
    def copies(self) -> int:
        """Number of copies of every training image: 1, or 2 with its flip."""
        return 1 if self.augment == "none" else 2

    @property
    def store_dtype(self) -> str:
        """The dtype of the stored tiles."""
        return self.store.dtype or self.kernel.dtype
