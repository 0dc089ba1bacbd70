"""Which network."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ntkpipe.config.checks import at_least, choice
from ntkpipe.errors import ConfigError

KERNELS = (
    "fcn",
    "cnn_vec",
    "cnn_gap",
    "cntk",
    "myrtle5",
    "myrtle7",
    "myrtle10",
    "resnet",
    "wide_resnet",
    "attention",
    "rbf",
    "laplace",
    "matern",
    "linear",
    "spec",
    "empirical",
    "sum",
    "product",
    "features",
    "gram",
)
"""Families of architectures, `spec`, `empirical` (one finite network), `sum` and `product` (of others), `features` (products of given
ones), and `gram` (a matrix)."""

GIVEN_KERNELS = ("features", "gram")
"""What is made of files and has no network and no images: labels come from `data=labels`."""

COMBINED = ("sum", "product")
"""Kernels made from others."""

PLAIN_KERNELS = ("fcn", "cnn_vec", "cnn_gap", "cntk")
"""Families whose deeper networks begin like the shallower ones: several depths come out of one evaluation."""


@dataclass(frozen=True)
class KernelConfig:
    """A declared architecture.

    Every family takes some of the fields below (docs/architectures.md lists them) and refuses the others, if they are set to
    anything but the default that stands here. `conf/kernel/` has the usual values of each family.

    Args:
        kind: a family of `KERNELS`, built from the fields below, `spec` (layers from a file), `empirical` (the kernels of one
            finite network with these layers), `sum` or `product` (of `parts`), `features` (products of features from files), or
            `gram`: no network, but kernel matrices from files.
        depth: hidden layers of `fcn`, convolutional layers of `cnn_vec`, `cnn_gap` and `attention`; layers of `cntk` and
            `wide_resnet` as their papers count them.
        readout_depths: of `PLAIN_KERNELS`: several values for `depth`, each a run of its own in `run_dir/depth=...`; their
            kernels come out of one evaluation, that of the deepest.
        width: hidden features or channels; matters in the `standard` parameterisation only.
        w_std, b_std: of every layer, the readout included; `b_std` None has no bias.
        activation: name of a nonlinearity (`relu`, `erf`, `gelu`, `swish`, ...; docs/architectures.md has them all).
        activation_args: its parameters, such as `{alpha: 0.1}`.
        parameterization: `ntk` or `standard`.
        filter: height and width of convolutions, one number for both; of sequences the first is the length; of volumes depth, height and
            width, or one number for all.
        padding: of convolutions, `SAME`, `VALID` or `CIRCULAR`.
        pool: before the readout, `gap` (global average pooling), `vec` (none), or `lap` (local average pooling, of `cntk`).
        pool_radius: of `lap`: squares of `2 pool_radius + 1` pixels.
        blocks: of `resnet` and `attention`.
        widen: of `wide_resnet`: channels are `width * widen`, twice and four times that.
        mechanism: of `attention`, `SOFTMAX`, `IDENTITY` or `RELU`.
        length_scale: of `rbf`, `laplace` and `matern`, in units of a pixel as prepared.
        nu: smoothness of `matern`: 0.5, 1.5 or 2.5.
        path: JSON or YAML list of layers, for `kind: spec` and `empirical`.
        parts: of `sum` and `product`: kernels, such as [{kind:fcn,depth:1},{kind:fcn,depth:3}]; each a mapping of the settings of
            its family, which has that family's usual values for the others. On a command line the name of a family, a file of
            layers, or the folder of a run stands for its kernel.
        weights: of `empirical`: `.npz` of the network's weights, as `finite.save_weights` writes it; None draws them. Of `sum`: one
            number per part; None is the average.
        seed: of `empirical`: of weights that are drawn.
        initialiser: of `empirical`: `gaussian`, `orthogonal` or `delta_orthogonal`, of weights that are drawn.
        outputs: of `empirical`: the NTK is the mean over outputs (`trace`), of their sum over sqrt(c) (`pseudo`), or of all pairs of
            outputs (`full`), n c rows for n points: the linearisation of this very network.
        scale: of `features`: what their products are divided by.
        train: of `gram`: the kernel among training points (n, n); of `features` their features (n, P). `.npy`, `.npz` of one array or a
            Zarr array, float32 or float64.
        test: of `gram`: test points by training points (p, n); of `features` (p, P). Likewise.
        test_diagonal: of `gram`: `k(x, x)` of the test points (p,), `.npy`; variances need it, and error bounds are estimates
            without it.
        dtype: `float32` or `float64`, of the computation; not used by `gram`.
    """

    kind: str = "fcn"
    depth: int = 3
    readout_depths: tuple[int, ...] = ()
    width: int = 512
    w_std: float = 1.4142135623730951
    b_std: float | None = 0.1
    activation: str = "relu"
    activation_args: dict[str, Any] = field(default_factory=dict)
    parameterization: str = "ntk"
    filter: tuple[int, ...] = (3, 3)
    padding: str = "SAME"
    pool: str = "gap"
    pool_radius: int = 4
    blocks: int = 3
    widen: int = 1
    mechanism: str = "SOFTMAX"
    length_scale: float = 1.0
    nu: float | None = None
    path: str | None = None
    parts: tuple[dict[str, Any], ...] = ()
    weights: str | tuple[float, ...] | None = None
    seed: int = 0
    initialiser: str = "gaussian"
    outputs: str = "trace"
    scale: float = 1.0
    train: str | None = None
    test: str | None = None
    test_diagonal: str | None = None
    dtype: str = "float32"

    @property
    def title(self) -> str:
        """A few words for people."""
        if self.kind == "fcn":
            return f"{self.activation} network of {self.depth} hidden layers"
        if self.kind in COMBINED:
            return f"{self.kind} of {', '.join(str(part.get('kind', '?')) for part in self.parts)}"
        what = "features" if self.kind == "features" else "kernel"
        return f"{what} {Path(self.train).name}" if self.train is not None else Path(self.path or self.kind).name

    def __post_init__(self) -> None:
        choice("kernel.kind", self.kind, KERNELS)
        choice("kernel.dtype", self.dtype, ("float32", "float64"))
        choice("kernel.parameterization", self.parameterization, ("ntk", "standard"))
        choice("kernel.padding", self.padding, ("SAME", "VALID", "CIRCULAR"))
        choice("kernel.pool", self.pool, ("gap", "vec", "lap"))
        choice("kernel.mechanism", self.mechanism, ("SOFTMAX", "IDENTITY", "RELU"))
        choice("kernel.nu", self.nu, (None, 0.5, 1.5, 2.5))
        at_least("kernel.depth", self.depth, 0)
        for depth in self.readout_depths:
            at_least("kernel.readout_depths", depth, 0)
        if len(set(self.readout_depths)) != len(self.readout_depths):
            raise ConfigError(f"kernel.readout_depths={list(self.readout_depths)} must hold each depth once")
        if self.readout_depths and self.kind not in PLAIN_KERNELS:
            raise ConfigError(
                f"kernel.readout_depths is for {', '.join(PLAIN_KERNELS)}, whose deeper networks begin like the shallower "
                f"ones; for kernel={self.kind} sweep instead, if it has a depth: --multirun kernel.depth=1,3"
            )
        at_least("kernel.pool_radius", self.pool_radius, 0)
        for name in ("width", "blocks", "widen"):
            at_least(f"kernel.{name}", getattr(self, name), 1)
        at_least("kernel.w_std", self.w_std, 0.0, strict=True)
        at_least("kernel.b_std", self.b_std, 0.0)
        at_least("kernel.length_scale", self.length_scale, 0.0, strict=True)
        if len(self.filter) not in (1, 2, 3) or min(self.filter) < 1:
            raise ConfigError(
                f"kernel.filter={list(self.filter)} must be [height, width], or one number (of sequences their length), or of volumes "
                "[depth, height, width], positive"
            )
        choice("kernel.initialiser", self.initialiser, ("gaussian", "orthogonal", "delta_orthogonal"))
        choice("kernel.outputs", self.outputs, ("trace", "pseudo", "full"))
        at_least("kernel.seed", self.seed, 0)
        at_least("kernel.scale", self.scale, 0.0, strict=True)
        self._check_parts()
        if self.kind in ("spec", "empirical") and self.path is None:
            raise ConfigError(f"kernel={self.kind} needs kernel.path=FILE.json or FILE.yaml, a list of layers")
        if self.kind == "gram" and None in (self.train, self.test):
            raise ConfigError(
                "kernel=gram needs kernel.train=FILE (training points by training points) and kernel.test=FILE (test points "
                "by training points), each a .npy file or a Zarr array"
            )
        if self.kind == "features" and None in (self.train, self.test):
            raise ConfigError(
                "kernel=features needs kernel.train=FILE (training points by features) and kernel.test=FILE (test points by the same "
                "features), each a .npy file or a Zarr array"
            )

    def _check_parts(self) -> None:
        if self.kind not in COMBINED:
            if isinstance(self.weights, tuple):
                raise ConfigError(f"kernel.weights={list(self.weights)} is a list of numbers for kernel=sum")
            return
        if not self.parts:
            raise ConfigError(
                f"kernel={self.kind} needs kernel.parts=[...], the kernels that it is made of, such as "
                "kernel.parts=[{kind:fcn,depth:1},{kind:fcn,depth:3}]"
            )
        if isinstance(self.weights, str):
            raise ConfigError(
                f"kernel.weights={self.weights} must be a list of numbers, one for each of {len(self.parts)} parts"
            )
