"""Networks in neural-tangents' words: the peer computes their kernels once (benchmarks/peer_values.py), tests compare.

`networks(stax)` takes either library's `stax`. Imports nothing but NumPy, so that the peer's environment can load it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def inputs() -> dict[str, np.ndarray]:
    """Points and images, `(5, ...)` each: the first three are `x1`, the rest `x2`."""
    rng = np.random.default_rng(7)
    shapes = {"points": (5, 10), "images": (5, 6, 6, 3), "large": (3, 32, 32, 3), "unit": (5, 8)}
    made = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    made["unit"] /= np.linalg.norm(made["unit"], axis=1, keepdims=True) / np.sqrt(8)  # variance 1, for Hermite
    return made


def wide_resnet(stax: Any, block_size: int, k: int, num_classes: int) -> Any:
    """As in the peer's README."""

    def block(channels, strides=(1, 1), channel_mismatch=False):
        main = stax.serial(
            stax.Relu(),
            stax.Conv(channels, (3, 3), strides, padding="SAME"),
            stax.Relu(),
            stax.Conv(channels, (3, 3), padding="SAME"),
        )
        shortcut = stax.Identity() if not channel_mismatch else stax.Conv(channels, (3, 3), strides, padding="SAME")
        return stax.serial(stax.FanOut(2), stax.parallel(main, shortcut), stax.FanInSum())

    def group(n, channels, strides=(1, 1)):
        blocks = []
        blocks += [block(channels, strides, channel_mismatch=True)]
        for _ in range(n - 1):
            blocks += [block(channels, (1, 1))]
        return stax.serial(*blocks)

    return stax.serial(
        stax.Conv(16, (3, 3), padding="SAME"),
        group(block_size, int(16 * k)),
        group(block_size, int(32 * k), (2, 2)),
        group(block_size, int(64 * k), (2, 2)),
        stax.AvgPool((8, 8)),
        stax.Flatten(),
        stax.Dense(num_classes, 1.0, 0.0),
    )


def fcn(stax: Any) -> Any:
    """The first network of the peer's README."""
    return stax.serial(stax.Dense(512), stax.Relu(), stax.Dense(512), stax.Relu(), stax.Dense(1))


def networks(stax: Any) -> dict[str, tuple[Callable[[], Any], str]]:
    """Every network by name, and its inputs' name."""

    def of_phi(phi, w_std=1.3, b_std=0.2):
        return lambda: stax.serial(
            stax.Dense(8, w_std, b_std), phi(), stax.Dense(8, w_std, b_std), phi(), stax.Dense(1)
        )

    def of_pixels(*layers):
        return lambda: stax.serial(
            stax.Conv(4, (3, 3), W_std=1.2, b_std=0.1), stax.Relu(), *(make() for make in layers), stax.Dense(1)
        )

    def of_attention(**settings):
        return of_pixels(
            lambda: stax.GlobalSelfAttention(4, 4, 4, 2, W_key_std=1.2, **settings), stax.Relu, stax.Flatten
        )

    # Behind an odd number of convolutions the peer takes height for width.
    again = lambda: stax.Conv(4, (1, 1))  # noqa: E731
    # A function there, a formula here.
    decay = (lambda x: np.exp(-x / 2)) if stax.__name__.startswith("neural_tangents") else "exp(-d / 2)"
    s = stax
    made = {
        "readme_fcn": (lambda: fcn(s), "points"),
        "readme_wide_resnet": (lambda: wide_resnet(s, 1, 1, 10), "large"),
        "docs_cnn": (
            lambda: s.serial(
                s.Conv(128, (3, 3)),
                s.Relu(),
                s.Conv(256, (3, 3)),
                s.Relu(),
                s.Conv(512, (2, 2)),
                s.Flatten(),
                s.Dense(10),
            ),
            "images",
        ),
        "repeat": (lambda: s.serial(s.repeat(s.serial(s.Dense(10, 1.4), s.Erf()), 3), s.Dense(1)), "points"),
        "standard": (
            lambda: s.serial(
                s.Dense(20, 1.4, 0.1, parameterization="standard"),
                s.Relu(),
                s.Dense(3, 1.2, parameterization="standard"),
            ),
            "points",
        ),
        "standard_conv": (
            lambda: s.serial(
                s.Conv(5, (3, 2), (2, 1), "SAME", 1.3, 0.1, parameterization="standard"),
                s.Erf(),
                s.Flatten(),
                s.Dense(1, parameterization="standard"),
            ),
            "images",
        ),
        "pixelwise_dense": (
            lambda: s.serial(s.Dense(8, 1.3, 0.1), s.Relu(), s.Conv(4, (3, 3)), s.Relu(), s.Flatten(), s.Dense(1)),
            "images",
        ),
        "pixelwise_branch": (
            lambda: s.serial(
                s.Conv(4, (3, 3), padding="CIRCULAR"),
                s.FanOut(3),
                s.parallel(
                    s.serial(s.Relu(), s.Dense(4, 1.1)),
                    s.serial(s.Erf(), s.Conv(4, (1, 3), padding="SAME")),
                    s.Identity(),
                ),
                s.FanInSum(),
                s.Relu(),
                s.GlobalAvgPool(),
                s.Dense(1),
            ),
            "images",
        ),
        "avg_pool": (of_pixels(lambda: s.AvgPool((2, 2)), s.Flatten), "images"),
        "avg_pool_edges": (
            of_pixels(lambda: s.AvgPool((3, 3), (2, 2), "SAME", normalize_edges=True), s.GlobalSumPool),
            "images",
        ),
        "sum_pool": (of_pixels(lambda: s.SumPool((2, 3), (1, 2), padding="CIRCULAR"), s.GlobalAvgPool), "images"),
        "layer_norm": (
            lambda: s.serial(s.Dense(8, 1.5, 0.2), s.LayerNorm(), s.Relu(), s.Dense(1)),
            "points",
        ),
        "layer_norm_image": (
            lambda: s.serial(
                s.Conv(4, (3, 3), b_std=0.1), s.LayerNorm(axis=(1, 2, 3)), s.Relu(), s.GlobalAvgPool(), s.Dense(1)
            ),
            "images",
        ),
        "attention": (
            lambda: s.serial(
                s.Conv(4, (3, 3)),
                s.Relu(),
                s.GlobalSelfAttention(
                    4, 4, 4, 2, W_key_std=1.2, W_value_std=1.1, W_query_std=0.9, W_out_std=1.3, b_std=0.1
                ),
                s.Relu(),
                s.GlobalAvgPool(),
                s.Dense(1),
            ),
            "images",
        ),
        "attention_identity": (
            lambda: s.serial(
                s.Conv(4, (3, 3)),
                s.GlobalSelfAttention(4, 4, 4, 2, attention_mechanism="IDENTITY"),
                s.Flatten(),
                s.Dense(1),
            ),
            "images",
        ),
        "attention_abs": (of_attention(attention_mechanism="ABS"), "images"),
        "attention_sum": (
            of_attention(pos_emb_type="SUM", W_pos_emb_std=0.7, attention_mechanism="RELU", b_std=0.2),
            "images",
        ),
        "attention_concat": (of_attention(pos_emb_type="CONCAT", val_pos_emb=True, b_std=0.2), "images"),
        "attention_decay": (
            of_attention(
                pos_emb_type="CONCAT",
                n_chan_pos_emb=6,
                W_pos_emb_std=1.4,
                pos_emb_p_norm=1,
                pos_emb_decay_fn=decay,
                val_pos_emb=True,
            ),
            "images",
        ),
        "attention_first": (
            lambda: s.serial(
                s.GlobalSelfAttention(4, 4, 4, 2, pos_emb_type="SUM", val_pos_emb=True), s.GlobalAvgPool(), s.Dense(1)
            ),
            "images",
        ),
        "resize_linear": (
            of_pixels(
                again, lambda: s.ImageResize((-1, 7, 9, -1), "linear"), lambda: s.Conv(4, (2, 2)), s.Relu, s.Flatten
            ),
            "images",
        ),
        "resize_smaller": (
            of_pixels(again, lambda: s.ImageResize((-1, 3, -1, -1), "linear"), s.GlobalAvgPool),
            "images",
        ),
        "resize_plain": (
            of_pixels(
                again,
                lambda: s.ImageResize((-1, 3, 2, -1), "linear", antialias=False),
                lambda: s.Dense(4),
                s.Relu,
                s.Flatten,
            ),
            "images",
        ),
        "resize_nearest": (of_pixels(again, lambda: s.ImageResize((-1, 9, 3, -1), "nearest"), s.Flatten), "images"),
        "transpose_same": (
            of_pixels(lambda: s.ConvTranspose(4, (3, 2), (2, 2), "SAME", 1.3, 0.2), s.Relu, s.Flatten),
            "images",
        ),
        "transpose_valid": (
            of_pixels(lambda: s.ConvTranspose(4, (3, 2), (2, 3), "VALID", 1.3, 0.2), s.Relu, s.GlobalAvgPool),
            "images",
        ),
        "transpose_circular": (
            of_pixels(lambda: s.ConvTranspose(4, (4, 3), (2, 1), "CIRCULAR", 1.3, 0.2), s.Relu, s.GlobalAvgPool),
            "images",
        ),
        "transpose_standard": (
            of_pixels(lambda: s.ConvTranspose(4, (2, 2), parameterization="standard", b_std=0.3), s.Relu, s.Flatten),
            "images",
        ),
        "local": (of_pixels(lambda: s.ConvLocal(4, (2, 3), (1, 2), "SAME", 1.3, 0.2), s.Relu, s.Flatten), "images"),
        "local_pooled": (
            of_pixels(lambda: s.ConvLocal(4, (2, 2), b_std=0.2), s.Erf, lambda: s.AvgPool((2, 2)), s.GlobalAvgPool),
            "images",
        ),
        "local_standard": (
            of_pixels(
                lambda: s.ConvLocal(4, (2, 2), padding="CIRCULAR", b_std=0.2, parameterization="standard"),
                s.Relu,
                s.GlobalAvgPool,
            ),
            "images",
        ),
        "fan_in_concat": (
            lambda: s.serial(
                s.Dense(8, 1.3, 0.1),
                s.FanOut(3),
                s.parallel(s.Relu(), s.serial(s.Erf(), s.Dense(4, 1.2)), s.Identity()),
                s.FanInConcat(),
                s.Dense(8, 1.1),
                s.Relu(),
                s.Dense(1),
            ),
            "points",
        ),
        "fan_in_prod": (
            lambda: s.serial(
                s.Conv(8, (3, 3), W_std=1.3, b_std=0.1),
                s.FanOut(3),
                s.parallel(
                    s.serial(s.Conv(8, (3, 3), padding="SAME"), s.Relu()),
                    s.serial(s.Erf(), s.Dense(8, 1.2)),
                    s.Identity(),
                ),
                s.FanInProd(),
                s.Dense(8, 1.1),
                s.Relu(),
                s.GlobalAvgPool(),
                s.Dense(1),
            ),
            "images",
        ),
        "dropout_test": (
            lambda: s.serial(s.Dense(8, 1.3), s.Relu(), s.Dropout(0.7, mode="test"), s.Dense(1)),
            "points",
        ),
        "dropout": (lambda: s.serial(s.Dense(8, 1.3), s.Relu(), s.Dropout(0.7), s.Dense(1)), "points"),
        "hermite": (lambda: s.serial(s.Dense(8), s.Hermite(3), s.Dense(1)), "unit"),
    }
    # One layer of it: behind another the peer's values are NaN.
    made["rectified_monomial"] = (lambda: s.serial(s.Dense(8, 1.3, 0.2), s.RectifiedMonomial(2), s.Dense(1)), "points")
    phis = {
        "relu": s.Relu,
        "leaky_relu": lambda: s.LeakyRelu(0.3),
        "ab_relu": lambda: s.ABRelu(-0.4, 0.8),
        "abs": s.Abs,
        "sign": s.Sign,
        "erf": lambda: s.Erf(0.7, 1.3, 0.2),
        "gelu": s.Gelu,
        "sin": lambda: s.Sin(0.9, 1.2, 0.3),
        "cos": lambda: s.Cos(0.9, 1.2, 0.3),
        "exp": lambda: s.Exp(0.5, 0.4),
        "gaussian": lambda: s.Gaussian(0.7, -0.6),
        "gabor": s.Gabor,
        "rbf": lambda: s.Rbf(0.6),
        "exp_normalized": lambda: s.ExpNormalized(1.2, -0.5),
        "monomial": lambda: s.Monomial(3),
        "polynomial": lambda: s.Polynomial([0.3, 0.5, -0.2, 0.1]),
        "sigmoid_like": s.Sigmoid_like,
    }
    return made | {f"phi_{name}": (of_phi(phi), "points") for name, phi in phis.items()}
