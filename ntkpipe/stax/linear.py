"""Layers with weights, and layers across pixels."""

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
    """A layer that returns its input."""
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
    """A dense layer; before pooling or flattening it acts on each pixel separately."""
    require_usual_axes(batch_axis, channel_axis)
    return layer_piece("dense", features=whole("out_dim", out_dim, 1), **weights(W_std, b_std, parameterization, s))


def _convolution(op: str, name: str, text: str) -> Callable[..., Piece]:
    """Return the function that makes a kind of convolution; all kinds have the same parameters."""

    def make(
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
        if dimension_numbers not in (None, ("NHWC", "HWIO", "NHWC")):
            raise ConfigError(
                f"dimension_numbers={dimension_numbers!r} is not supported: arrays must be (n, height, width, channels), "
                "so transpose them"
            )
        return layer_piece(
            op,
            features=whole("out_chan", out_chan, 1),
            filter=pair("filter_shape", filter_shape),
            **_steps(strides, padding),
            **weights(W_std, b_std, parameterization, s),
        )

    make.__name__ = make.__qualname__ = name
    make.__doc__ = text
    return make


def _steps(strides: Sequence[int] | None, padding: str | Padding) -> dict[str, Any]:
    """Return how windows move over images."""
    return {"strides": pair("strides", strides, (1, 1)), "padding": name_of(padding)}


Conv = _convolution("conv", "Conv", "A convolution in two dimensions, by default without padding.")
ConvTranspose = _convolution("conv_transpose", "ConvTranspose", "A transposed convolution: images grow by the strides.")
ConvLocal = _convolution("conv_local", "ConvLocal", "A convolution with separate weights and biases for every pixel.")


def ImageResize(
    shape: Sequence[int],
    method: Any,
    antialias: bool = True,
    precision: Any = None,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Piece:
    """Resize images by the methods `nearest` and `linear` of `jax.image.resize`.

    Args:
        shape: shape of the result with all axes, `(-1, height, width, -1)`; -1 keeps an axis.
        method: `nearest`, or `linear` under any of its names.
        antialias: use antialiasing if `linear` shrinks the images.
        precision: no effect.
        batch_axis: must be 0.
        channel_axis: must be -1.
    """
    del precision
    require_usual_axes(batch_axis, channel_axis)
    if len(shape) != 4 or shape[0] != -1 or shape[3] != -1:
        raise ConfigError(
            f"shape={tuple(shape)} must be (-1, height, width, -1), because the numbers of images and channels are "
            "fixed"
        )
    name = str(name_of(method)).lower()
    name = "linear" if name in ("linear", "bilinear", "trilinear", "triangle") else name
    if name not in ("linear", "nearest"):
        raise ConfigError(f"method={name!r} is not one of linear, nearest")
    return layer_piece("resize", shape=pair("shape", list(shape[1:3])), method=name, antialias=antialias)


def AvgPool(
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Padding = "VALID",
    normalize_edges: bool = False,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Piece:
    """Means over windows, with strides of 1 by default."""
    require_usual_axes(batch_axis, channel_axis)
    window = pair("window_shape", window_shape)
    return layer_piece("avg_pool", window=window, **_steps(strides, padding), normalize_edges=normalize_edges)


def SumPool(
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Padding = "VALID",
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Piece:
    """Sums over windows, with strides of 1 by default."""
    require_usual_axes(batch_axis, channel_axis)
    return layer_piece("sum_pool", window=pair("window_shape", window_shape), **_steps(strides, padding))


def GlobalAvgPool(batch_axis: int = 0, channel_axis: int = -1) -> Piece:
    """The mean over all pixels."""
    require_usual_axes(batch_axis, channel_axis)
    return layer_piece("global_avg_pool")


def GlobalSumPool(batch_axis: int = 0, channel_axis: int = -1) -> Piece:
    """The sum over all pixels."""
    require_usual_axes(batch_axis, channel_axis)
    return layer_piece("global_sum_pool")


def Flatten(batch_axis: int = 0, batch_axis_out: int = 0) -> Piece:
    """Flatten images to one feature per pixel and channel."""
    require_usual_axes(batch_axis)
    require_usual_axes(batch_axis_out)
    return layer_piece("flatten")


def LayerNorm(axis: int | Sequence[int] = -1, eps: float = 1e-12, batch_axis: int = 0, channel_axis: int = -1) -> Piece:
    """Normalisation over the channels of each pixel (axis -1) or over whole images (axes 1, 2, 3)."""
    require_usual_axes(batch_axis, channel_axis)
    axes = sorted(a % 4 for a in ([axis] if isinstance(axis, int) else axis))
    if axes not in ([3], [1, 2, 3]):
        raise ConfigError(f"axis={axis!r} must be the channels (-1) or whole images (1, 2, 3)")
    return layer_piece("layer_norm", axis=[-1] if axes == [3] else axes, eps=number(eps))


def Dropout(rate: float, mode: str = "train") -> Piece:
    """Dropout, which keeps activations with probability `rate`. In the mode `test` it has no effect."""
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
                "pos_emb_decay_fn must be a formula as text here, in the distance d, such as 'exp(-d)': Python "
                "functions have no fingerprint to identify stored results"
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
