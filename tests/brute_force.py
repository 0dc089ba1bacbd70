"""Kernels of any architecture, slowly and obviously: every pair of pixels of every pair of images, in extended precision.

A linear layer is a matrix over pixels for each of its taps, made by loops over pixels; covariances are `(n, n, P, P)` with all
images of both sides in one list. See MATH.md of the design, and arXiv:1904.11955.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import softmax

REAL = np.longdouble


@dataclass(frozen=True)
class State:
    """Covariances `(n, n, P, P)` of images with `P = h * w` pixels; flat ones have `spatial == ()` and `P == 1`."""

    nngp: np.ndarray
    ntk: np.ndarray
    spatial: tuple[int, ...]
    features: int
    sine: float = (
        1.0  # the smallest sine of an angle that a kinked nonlinearity has met, but for pixels with themselves
    )

    def variances(self):
        """`(n, P)`: of every pixel of every image."""
        return np.einsum("iipp->ip", self.nngp)

    def map(self, f, **changes):
        return replace(self, nngp=f(self.nngp), ntk=f(self.ntk), **changes)


def evaluate(spec, x):
    """Both kernels `(n, n)` of images `(n, h, w, channels)`, and the smallest sine on the way."""
    pixels = x.reshape(len(x), -1, x.shape[-1]).astype(REAL)
    nngp = np.einsum("ipc,jqc->ijpq", pixels, pixels) / x.shape[-1]
    state = fold(spec, State(nngp, np.zeros_like(nngp), x.shape[1:-1], x.shape[-1]))
    assert state.spatial == ()
    return state.nngp[:, :, 0, 0], state.ntk[:, :, 0, 0], state.sine


def fold(spec, state):
    for layer in spec:
        layer = dict(layer)
        state = LAYERS[layer.pop("op")](state, **layer)
    return state


# ---- windows


def low_padding(extent, size, stride, padding):
    if padding == "VALID":
        return 0
    out = math.ceil(extent / stride)
    return max((out - 1) * stride + size - extent, 0) // 2


def output_extent(extent, size, stride, padding):
    return (extent - size) // stride + 1 if padding == "VALID" else math.ceil(extent / stride)


def under(position, tap, extent, size, stride, padding):
    """The input position under a tap of a window, or None in the padding."""
    at = position * stride - low_padding(extent, size, stride, padding) + tap
    if padding == "CIRCULAR":
        return at % extent
    return at if 0 <= at < extent else None


def shifts(spatial, window, strides, padding):
    """The extent of the output, and for every tap the matrix (output pixels, input pixels) of what lies under it."""
    axes = list(zip(spatial, window, strides, strict=True))
    out = tuple(output_extent(*axis, padding) for axis in axes)
    made = []
    for taps in itertools.product(*map(range, window)):
        matrix = np.zeros((math.prod(out), math.prod(spatial)), REAL)
        for position in itertools.product(*map(range, out)):
            each = zip(position, taps, axes, strict=True)
            at = [under(i, tap, *axis, padding) for i, tap, axis in each]
            if None not in at:
                matrix[np.ravel_multi_index(position, out), np.ravel_multi_index(at, spatial)] = 1
        made.append(matrix)
    return out, made


def both_sides(matrix, k):
    return matrix @ k @ matrix.T


# ---- layers


def weights(state, mean, fan_in, spatial, features, w_std, b_std, parameterization):
    """A linear layer, `mean` over its fan-in."""
    k, t = mean(state.nngp), mean(state.ntk)
    bias = 0 if b_std is None else REAL(b_std) ** 2
    nngp = REAL(w_std) ** 2 * k + bias
    own = nngp if parameterization == "ntk" else fan_in * k + (b_std is not None)
    return replace(state, nngp=nngp, ntk=own + REAL(w_std) ** 2 * t, spatial=spatial, features=features)


def dense(state, features, w_std=1.0, b_std=None, parameterization="ntk"):
    assert state.spatial == ()
    return weights(state, lambda k: k, state.features, (), features, w_std, b_std, parameterization)


def conv(state, features, filter, strides, padding, w_std=1.0, b_std=None, parameterization="ntk"):
    spatial, taps = shifts(state.spatial, filter, strides, padding)

    def mean(k):
        return sum(both_sides(tap, k) for tap in taps) / len(taps)

    return weights(state, mean, state.features * len(taps), spatial, features, w_std, b_std, parameterization)


def conv_transpose(state, features, filter, strides, padding, w_std=1.0, b_std=None, parameterization="ntk"):
    """Every input pixel is laid on the output under all taps: the transpose of a strided convolution of the output."""
    (h, w), (fh, fw), (sh, sw) = state.spatial, filter, strides
    more = [max(f - s, 0) if padding == "VALID" else 0 for f, s in ((fh, sh), (fw, sw))]
    oh, ow = h * sh + more[0], w * sw + more[1]

    def first(f, s):
        if padding == "VALID" or s >= f:
            return 0
        return f - 1 - math.ceil((f + s - 2) / 2)

    taps = []
    for a, b in itertools.product(range(fh), range(fw)):
        matrix = np.zeros((oh * ow, h * w), REAL)
        for i, j in itertools.product(range(h), range(w)):
            row, col = i * sh - first(fh, sh) + a, j * sw - first(fw, sw) + b
            if padding == "CIRCULAR":
                row, col = row % oh, col % ow
            if 0 <= row < oh and 0 <= col < ow:
                matrix[row * ow + col, i * w + j] = 1
        taps.append(matrix)

    def mean(k):
        return sum(both_sides(tap, k) for tap in taps) / len(taps)

    return weights(state, mean, state.features * len(taps), (oh, ow), features, w_std, b_std, parameterization)


def conv_local(state, **parameters):
    made = conv(state, **parameters)
    pixels = np.eye(made.nngp.shape[2], dtype=bool)
    return made.map(lambda k: np.where(pixels, k, 0))


def resize(state, shape, method="linear", antialias=True):
    """Interpolated along one axis after the other, pixel by pixel."""

    def matrix(n, out):
        made = np.zeros((out, n), REAL)
        for i in range(out):
            centre = (2 * i + 1) * REAL(n) / (2 * out)
            for j in range(n):
                if method == "nearest":
                    made[i, j] = j == math.floor(centre)
                else:
                    made[i, j] = max(0, 1 - abs(centre - j - 0.5) / (max(REAL(n) / out, 1) if antialias else 1))
        return made / made.sum(axis=1, keepdims=True)

    spatial = tuple(n if out == -1 else out for n, out in zip(state.spatial, shape, strict=True))
    both = np.kron(*(matrix(*sizes) for sizes in zip(state.spatial, spatial, strict=True)))
    return state.map(lambda k: both_sides(both, k), spatial=spatial)


def sum_pool(state, window, strides, padding):
    spatial, taps = shifts(state.spatial, window, strides, padding)
    return state.map(lambda k: both_sides(sum(taps), k), spatial=spatial)


def avg_pool(state, window, strides, padding, normalize_edges=False):
    spatial, taps = shifts(state.spatial, window, strides, padding)
    matrix = sum(taps)
    counts = matrix.sum(axis=1, keepdims=True) if normalize_edges else len(taps)
    return state.map(lambda k: both_sides(matrix / counts, k), spatial=spatial)


def global_sum_pool(state):
    return state.map(lambda k: k.sum(axis=(2, 3), keepdims=True), spatial=())


def global_avg_pool(state):
    return state.map(lambda k: k.mean(axis=(2, 3), keepdims=True), spatial=())


def flatten(state):
    def mean(k):
        return np.einsum("ijpp->ij", k)[:, :, None, None] / k.shape[2]

    return state.map(mean, spatial=(), features=state.features * math.prod(state.spatial))


def ab_relu(state, a, b):
    k, v = state.nngp, state.variances()
    product = v[:, None, :, None] * v[None, :, None, :]
    root = np.sqrt(np.maximum(product - k * k, 0))
    same = own_pixels(k)
    root[same] = 0
    # Pixels of variance zero are the limit of a shrinking bias, which all of them share: its own angle is 0, that to others pi / 2.
    total = v[:, None, :, None] + v[None, :, None, :]
    angle = np.where(product > 0, np.arctan2(root, k), np.where(total > 0, np.arccos(REAL(0)), 0))
    angle[same] = 0
    c = REAL(a - b) ** 2 / (2 * np.arccos(REAL(-1)))
    dot = (REAL(a) ** 2 + REAL(b) ** 2) / 2 - c * angle
    sines = (root / np.sqrt(np.where(product > 0, product, 1)))[(product > 0) & ~same]
    sine = min([state.sine, *sines.ravel()]) if a != b else state.sine
    return replace(state, nngp=c * root + dot * k, ntk=state.ntk * dot, sine=float(sine))


def own_pixels(k):
    """Mask of pixels with themselves."""
    n, _, p, _ = k.shape
    return np.eye(n, dtype=bool)[:, :, None, None] & np.eye(p, dtype=bool)[None, None]


def erf(state, a=1.0, b=1.0, c=0.0):
    assert (a, b, c) == (1, 1, 0)
    k, v = state.nngp, state.variances()
    product = (1 + 2 * v)[:, None, :, None] * (1 + 2 * v)[None, :, None, :]
    root = np.sqrt(product - 4 * k * k)
    pi = np.arccos(REAL(-1))
    return replace(state, nngp=2 / pi * np.arctan2(2 * k, root), ntk=state.ntk * (4 / pi / root))


def layer_norm(state, axis=(-1,), eps=1e-12):
    v = state.variances()
    if tuple(axis) != (-1,):
        v = np.broadcast_to(v.mean(axis=1, keepdims=True), v.shape)
    scale = 1 / np.sqrt(v + REAL(eps))
    return state.map(lambda k: k * scale[:, None, :, None] * scale[None, :, None, :])


def residual_sum(state, branches):
    ends = [fold(branch, state) for branch in branches]
    return replace(
        ends[0], nngp=sum(e.nngp for e in ends), ntk=sum(e.ntk for e in ends), sine=min(e.sine for e in ends)
    )


def fan_in_concat(state, branches, fractions=None):
    ends = [fold(branch, state) for branch in branches]
    widths = [end.features for end in ends]
    shares = [REAL(n) / sum(widths) for n in widths] if fractions is None else [REAL(f) for f in fractions]
    kernels = {
        name: sum(f * getattr(end, name) for f, end in zip(shares, ends, strict=True)) for name in ("nngp", "ntk")
    }
    return replace(ends[0], **kernels, features=sum(widths), sine=min(e.sine for e in ends))


def fan_in_product(state, branches):
    ends = [fold(branch, state) for branch in branches]
    ntk = sum(
        math.prod((other.nngp for k, other in enumerate(ends) if k != at), start=end.ntk) for at, end in enumerate(ends)
    )
    return replace(ends[0], nngp=math.prod(end.nngp for end in ends), ntk=ntk, sine=min(end.sine for end in ends))


def global_self_attention(
    state, mechanism, w_key_std, w_query_std, w_value_std, w_out_std, b_std, n_chan_out, **unused
):
    weight, positions = 1, 0
    if unused.get("pos_emb_type", "NONE") != "NONE":
        rate = float(unused["pos_emb_decay_fn"].removeprefix("exp(-").removesuffix(" * d)"))
        positions = REAL(unused["w_pos_emb_std"]) ** 2 * embedded(state.spatial, unused["pos_emb_p_norm"], rate)
        if unused["pos_emb_type"] == "CONCAT":
            channels = unused["n_chan_pos_emb"] or state.features
            weight = REAL(state.features) / (state.features + channels)
            positions = positions * channels / (state.features + channels)
    attends = REAL(w_query_std) * REAL(w_key_std) * (weight * np.einsum("iipq->ipq", state.nngp) + positions)
    if mechanism == "SOFTMAX":
        attends = softmax(attends, axis=2)
    elif mechanism == "RELU":
        attends = np.maximum(attends, 0)
    elif mechanism == "ABS":
        attends = np.abs(attends)
    scale = (REAL(w_out_std) * REAL(w_value_std)) ** 2

    def mixed(k):
        if unused.get("val_pos_emb", False):
            k = weight * k + positions
        return scale * attends[:, None] @ k @ np.swapaxes(attends, 1, 2)[None, :]

    k, bias = mixed(state.nngp), 0 if b_std is None else REAL(b_std) ** 2
    return replace(state, nngp=k + bias, ntk=mixed(state.ntk) + 2 * k + bias, features=n_chan_out)


def embedded(spatial, p_norm, rate):
    """Covariance of the embeddings of all pixels, exp(-rate * d)."""
    places = list(itertools.product(*map(range, spatial)))
    distances = [[sum(abs(i - j) ** REAL(p_norm) for i, j in zip(a, b, strict=True)) for b in places] for a in places]
    return np.exp(-np.array(distances) * REAL(rate))


def dropout(state, rate):
    same = own_pixels(state.nngp)
    return state.map(lambda k: np.where(same, k / REAL(rate), k))


LAYERS = {
    "flatten": flatten,
    "dense": dense,
    "conv": conv,
    "conv_transpose": conv_transpose,
    "conv_local": conv_local,
    "resize": resize,
    "avg_pool": avg_pool,
    "sum_pool": sum_pool,
    "global_avg_pool": global_avg_pool,
    "global_sum_pool": global_sum_pool,
    "relu": lambda state: ab_relu(state, 0.0, 1.0),
    "leaky_relu": lambda state, alpha: ab_relu(state, alpha, 1.0),
    "abs": lambda state: ab_relu(state, -1.0, 1.0),
    "identity": lambda state: state,
    "ab_relu": ab_relu,
    "erf": erf,
    "layer_norm": layer_norm,
    "residual_sum": residual_sum,
    "repeat": lambda state, times, layers: fold(list(layers) * times, state),
    "fan_in_concat": fan_in_concat,
    "fan_in_product": fan_in_product,
    "global_self_attention": global_self_attention,
    "dropout": dropout,
}
