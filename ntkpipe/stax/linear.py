"""Layers with weights, and those between pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ntkpipe.errors import ConfigError
from ntkpipe.stax.network import Piece, layer_piece
from ntkpipe.stax.values import (
    AttentionMechanism,
    Padding,
    PositionalEmbedding,
    name_of,
    number,
    pair,
    require_usual_axes,
    weights,
    whole,
)


def Identity() -> Piece:
    """Nothing."""
    return Piece(())


def Dense(
    out_dim: int,
    W_std: float = 1.0,
    b_std: float | None = None,
    batch_axis: int = 0,
    channel_axis: int = -1,
    parameterization: str = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Piece:
    """A dense layer; before pooling or flattening it acts on every pixel by itself."""
    require_usual_axes(batch_axis, channel_axis)
    return layer_piece("dense", features=whole("out_dim", out_dim, 1), **weights(W_std, b_std, parameterization, s))


def Conv(
    out_chan: int,
    filter_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Padding = "VALID",
    W_std: float = 1.0,
    b_std: float | None = None,
    dimension_numbers: tuple[str, str, str] | None = None,
    parameterization: str = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Piece:
    """A convolution in two dimensions; without padding unless it is asked for."""
    kinds = weights(W_std, b_std, parameterization, s)
    return _convolution("conv", out_chan, filter_shape, strides, padding, dimension_numbers, kinds)


def ConvTranspose(
    out_chan: int,
    filter_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Padding = "VALID",
    W_std: float = 1.0,
    b_std: float | None = None,
    dimension_numbers: tuple[str, str, str] | None = None,
    parameterization: str = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Piece:
    """A transposed convolution: images grow by the strides."""
    kinds = weights(W_std, b_std, parameterization, s)
    return _convolution("conv_transpose", out_chan, filter_shape, strides, padding, dimension_numbers, kinds)


def ConvLocal(
    out_chan: int,
    filter_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Padding = "VALID",
    W_std: float = 1.0,
    b_std: float | None = None,
    dimension_numbers: tuple[str, str, str] | None = None,
    parameterization: str = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Piece:
    """A convolution with weights and biases of its own for every pixel."""
    kinds = weights(W_std, b_std, parameterization, s)
    return _convolution("conv_local", out_chan, filter_shape, strides, padding, dimension_numbers, kinds)


def _convolution(
    op: str,
    out_chan: int,
    filter_shape: Sequence[int],
    strides: Sequence[int] | None,
    padding: str | Padding,
    dimension_numbers: tuple[str, str, str] | None,
    kinds: dict[str, Any],
) -> Piece:
    if dimension_numbers not in (None, ("NHWC", "HWIO", "NHWC")):
        raise ConfigError(
            f"dimension_numbers={dimension_numbers!r}: arrays are (n, height, width, channels) here; transpose them"
        )
    return layer_piece(
        op,
        features=whole("out_chan", out_chan, 1),
        filter=pair("filter_shape", filter_shape),
        strides=pair("strides", strides, (1, 1)),
        padding=name_of(padding),
        **kinds,
    )


def ImageResize(
    shape: Sequence[int],
    method: Any,
    antialias: bool = True,
    precision: Any = None,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Piece:
    """Images of another height and width, by the methods `nearest` and `linear` of `jax.image.resize`.

    Args:
        shape: of the images with all their axes, -1 where one stays as it is: `(-1, height, width, -1)`.
        method: `nearest`, or `linear` by any of its names.
        antialias: of `linear`, where images grow smaller.
        precision: changes nothing.
        batch_axis: 0.
        channel_axis: -1.
    """
    del precision
    require_usual_axes(batch_axis, channel_axis)
    if len(shape) != 4 or shape[0] != -1 or shape[3] != -1:
        raise ConfigError(
            f"shape={tuple(shape)} must be (-1, height, width, -1): the number of images and of channels stays"
        )
    name = str(name_of(method)).lower()
    name = "linear" if name in ("linear", "bilinear", "trilinear", "triangle") else name
    if name not in ("linear", "nearest"):
        raise ConfigError(f"method={name!r}: ImageResize is by linear or nearest, as the peer's kernels are")
    return layer_piece("resize", shape=pair("shape", list(shape[1:3])), method=name, antialias=antialias)


def AvgPool(
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Padding = "VALID",
    normalize_edges: bool = False,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Piece:
    """Means over windows, one a pixel unless there are strides."""
    require_usual_axes(batch_axis, channel_axis)
    window, steps = pair("window_shape", window_shape), pair("strides", strides, (1, 1))
    return layer_piece(
        "avg_pool", window=window, strides=steps, padding=name_of(padding), normalize_edges=normalize_edges
    )


def SumPool(
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Padding = "VALID",
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Piece:
    """Sums over windows, one a pixel unless there are strides."""
    require_usual_axes(batch_axis, channel_axis)
    window, steps = pair("window_shape", window_shape), pair("strides", strides, (1, 1))
    return layer_piece("sum_pool", window=window, strides=steps, padding=name_of(padding))


def GlobalAvgPool(batch_axis: int = 0, channel_axis: int = -1) -> Piece:
    """The mean over all pixels."""
    require_usual_axes(batch_axis, channel_axis)
    return layer_piece("global_avg_pool")


def GlobalSumPool(batch_axis: int = 0, channel_axis: int = -1) -> Piece:
    """The sum over all pixels."""
    require_usual_axes(batch_axis, channel_axis)
    return layer_piece("global_sum_pool")


def Flatten(batch_axis: int = 0, batch_axis_out: int = 0) -> Piece:
    """One feature per pixel and channel."""
    require_usual_axes(batch_axis)
    require_usual_axes(batch_axis_out)
    return layer_piece("flatten")


def LayerNorm(axis: int | Sequence[int] = -1, eps: float = 1e-12, batch_axis: int = 0, channel_axis: int = -1) -> Piece:
    """Normalisation over the channels of each pixel (axis -1) or over whole images (axes 1, 2, 3)."""
    require_usual_axes(batch_axis, channel_axis)
    axes = sorted(a % 4 for a in ([axis] if isinstance(axis, int) else axis))
    if axes not in ([3], [1, 2, 3]):
        raise ConfigError(f"axis={axis!r}: LayerNorm is over the channels (-1) or over whole images (1, 2, 3) here")
    return layer_piece("layer_norm", axis=[-1] if axes == [3] else axes, eps=number(eps))


def Dropout(rate: float, mode: str = "train") -> Piece:
    """Keep activations with probability `rate`; nothing in mode `test`."""
    if mode not in ("train", "test"):
        raise ConfigError(f"mode={mode!r} is not one of train, test")
    return layer_piece("dropout", rate=number(rate)) if mode == "train" else Identity()


def GlobalSelfAttention(
    n_chan_out: int,
    n_chan_key: int,
    n_chan_val: int,
    n_heads: int,
    linear_scaling: bool = True,
    W_key_std: float = 1.0,
    W_value_std: float = 1.0,
    W_query_std: float = 1.0,
    W_out_std: float = 1.0,
    b_std: float | None = None,
    attention_mechanism: str | AttentionMechanism = "SOFTMAX",
    pos_emb_type: str | PositionalEmbedding = "NONE",
    pos_emb_p_norm: float = 2,
    pos_emb_decay_fn: str | Callable[[float], float] | None = None,
    n_chan_pos_emb: int | None = None,
    W_pos_emb_std: float = 1.0,
    val_pos_emb: bool = False,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Piece:
    """Attention over all pixels; `pos_emb_decay_fn` is a formula in the distance d, as text: `"exp(-d)"`."""
    require_usual_axes(batch_axis, channel_axis)
    positions = {}
    if name_of(pos_emb_type) != "NONE":
        if pos_emb_decay_fn is not None and not isinstance(pos_emb_decay_fn, str):
            raise ConfigError(
                "pos_emb_decay_fn must be a formula as text here, in the distance d, such as 'exp(-d)': functions of Python have no "
                "fingerprint to find stored results by"
            )
        positions = {
            "pos_emb_type": name_of(pos_emb_type),
            "pos_emb_p_norm": number(pos_emb_p_norm),
            "pos_emb_decay_fn": pos_emb_decay_fn,
            "n_chan_pos_emb": None if n_chan_pos_emb is None else whole("n_chan_pos_emb", n_chan_pos_emb, 1),
            "w_pos_emb_std": number(W_pos_emb_std),
            "val_pos_emb": val_pos_emb,
        }
    return layer_piece(
        "global_self_attention",
        n_heads=whole("n_heads", n_heads, 1),
        n_chan_out=whole("n_chan_out", n_chan_out, 1),
        n_chan_key=whole("n_chan_key", n_chan_key, 1),
        n_chan_val=whole("n_chan_val", n_chan_val, 1),
        linear_scaling=linear_scaling,
        mechanism=name_of(attention_mechanism),
        w_key_std=number(W_key_std),
        w_query_std=number(W_query_std),
        w_value_std=number(W_value_std),
        w_out_std=number(W_out_std),
        b_std=number(b_std),
        **positions,
    )
