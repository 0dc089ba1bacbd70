from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import scipy.special

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.parameters import ACTIVATIONS
from ntkpipe.propagation.critical import critical_line, critical_w_std
from ntkpipe.propagation.growth import growth
from ntkpipe.propagation.isometry import isometry
from ntkpipe.propagation.kinks import kinks
from ntkpipe.propagation.maps import activation_maps
from ntkpipe.propagation.phase import phase

ARGUMENTS = {
    "leaky_relu": {"alpha": 0.1},
    "ab_relu": {"a": -0.5, "b": 1.0},
    "monomial": {"degree": 1},
    "rectified_monomial": {"degree": 1},
    "hermite": {"degree": 1},
    "elementwise": {"function": "x * sigmoid(x)"},
}


def of(activation, w2, b2, **others):
    return phase(activation, w_std=math.sqrt(w2), b_std=math.sqrt(b2), **others)


def test_reference_values():
    ordered = of("tanh", 1.5, 0.05)
    assert ordered.q_star == pytest.approx(0.418037, abs=6e-7)
    assert ordered.chi_1 == pytest.approx(0.938636, abs=6e-7)
    assert ordered.xi_c == pytest.approx(15.790994, abs=6e-7)
    assert (ordered.phase, ordered.c_star) == ("ordered", 1.0)
    chaotic = of("tanh", 2.5, 0.05)
    assert chaotic.q_star == pytest.approx(1.063958, abs=6e-7)
    assert chaotic.chi_1 == pytest.approx(1.133516, abs=6e-7)
    assert chaotic.c_star == pytest.approx(0.446804, abs=6e-7)
    assert chaotic.xi_c == pytest.approx(11.795598, abs=6e-7)
    assert chaotic.phase == "chaotic"
    assert chaotic.critical_w_std**2 == pytest.approx(1.7609546396, abs=1e-10)
    assert of("tanh", 1.7609546396, 0.05).q_star == pytest.approx(0.5700478816, abs=2e-10)
    assert critical_w_std(activation_maps("tanh"), math.sqrt(2.01e-5)) ** 2 == pytest.approx(1.0499956285, abs=1e-10)
    assert critical_w_std(activation_maps("tanh"), math.sqrt(1.33253e-12)) ** 2 == pytest.approx(1.00019997, abs=1e-9)
    assert critical_w_std(activation_maps("erf"), math.sqrt(0.05)) ** 2 == pytest.approx(1.3758390073, abs=1e-10)
    relu = of("relu", 1.5, 0.1)
    assert (relu.q_star, relu.chi_1) == pytest.approx((0.4, 0.75), rel=1e-14)
    assert relu.xi_c == pytest.approx(3.476059, abs=6e-7)


@pytest.mark.parametrize(("w2", "b2"), [(0.9, 0.01), (1.37, 0.05), (1.6, 0.05), (4.0, 0.2), (9.0, 1e-4)])
def test_erf_has_closed_forms(w2, b2):
    """Found here in 30 digits, from asin alone."""
    mpmath.mp.dps = 30
    q = mpmath.findroot(lambda q: w2 * 2 / mpmath.pi * mpmath.asin(2 * q / (1 + 2 * q)) + b2 - q, w2)
    chi_1 = w2 * 4 / mpmath.pi / mpmath.sqrt(1 + 4 * q)
    made = of("erf", w2, b2)
    assert made.q_star == pytest.approx(float(q), rel=1e-12)
    assert made.chi_1 == pytest.approx(float(chi_1), rel=1e-12)
    slope = w2 * mpmath.diff(lambda q: 2 / mpmath.pi * mpmath.asin(2 * q / (1 + 2 * q)), q)
    assert made.xi_q == pytest.approx(float(-1 / mpmath.log(slope)), rel=1e-10)
    c = mpmath.mpf(1)
    if chi_1 > 1:

        def moved(c):
            return (w2 * 2 / mpmath.pi * mpmath.asin(2 * q * c / (1 + 2 * q)) + b2) / q - c

        c = mpmath.findroot(moved, (0, 0.999), solver="anderson", tol=1e-25)
    slope = w2 * 4 / mpmath.pi / mpmath.sqrt((1 + 2 * q) ** 2 - 4 * q * q * c * c)
    assert made.c_star == pytest.approx(float(c), rel=1e-11)
    assert made.chi_c_star == pytest.approx(float(slope), rel=1e-11)
    assert made.xi_c == pytest.approx(float(-1 / mpmath.log(slope)), rel=1e-9)


@pytest.mark.parametrize("far", [1e-3, 1e-5, 1e-7])
def test_chaos_near_criticality_keeps_its_digits(far):
    """`1 - c` and `xi_c` of erf from 60 digits, where float64 has lost both in c itself."""
    mpmath.mp.dps = 60
    w_std = critical_w_std(activation_maps("erf"), 0.2) * (1 + far)
    w2, b2 = mpmath.mpf(w_std) ** 2, mpmath.mpf(0.2) ** 2
    q = mpmath.findroot(lambda q: w2 * 2 / mpmath.pi * mpmath.asin(2 * q / (1 + 2 * q)) + b2 - q, mpmath.mpf("0.45"))
    slope_at = [w2 * 4 / mpmath.pi / mpmath.sqrt((1 + 2 * q) ** 2 - 4 * q * q)]

    def moved(g):
        lost = mpmath.asin(2 * q / (1 + 2 * q)) - mpmath.asin(2 * q * (1 - g) / (1 + 2 * q))
        return w2 * 2 / mpmath.pi * lost / q / g - 1

    guess = (
        2
        * (slope_at[0] - 1)
        / mpmath.diff(lambda c: w2 * 4 / mpmath.pi / mpmath.sqrt((1 + 2 * q) ** 2 - 4 * q * q * c * c), 1)
    )
    g = mpmath.findroot(moved, guess)
    slope = w2 * 4 / mpmath.pi / mpmath.sqrt((1 + 2 * q) ** 2 - 4 * q * q * (1 - g) ** 2)
    made = phase("erf", w_std=w_std, b_std=0.2)
    assert made.phase == "chaotic"
    assert 1 - made.c_star == pytest.approx(float(g), rel=1e-14 / far + 1e-9 / far**0.5)
    assert made.xi_c == pytest.approx(float(-1 / mpmath.log(slope)), rel=2e-14 / far + 1e-9)


@pytest.mark.parametrize(
    ("name", "function", "derivative", "w2", "b2"),
    [
        ("tanh", mpmath.tanh, lambda x: 1 / mpmath.cosh(x) ** 2, 2.2, 0.05),
        ("tanh", mpmath.tanh, lambda x: 1 / mpmath.cosh(x) ** 2, 9.0, 0.01),
        ("sin", mpmath.sin, mpmath.cos, 2.0, 0.1),
        ("softplus", lambda x: mpmath.log(1 + mpmath.exp(x)), lambda x: 1 / (1 + mpmath.exp(-x)), 1.2, 0.1),
    ],
)
def test_quadrature_in_many_digits_agrees(name, function, derivative, w2, b2):
    mpmath.mp.dps = 20
    made = of(name, w2, b2)
    q = mpmath.mpf(made.q_star)
    root = mpmath.sqrt(q)
    breaks = [-9, -4, -2, -1, -0.5, 0, 0.5, 1, 2, 4, 9]

    def mean(f):
        return mpmath.quad(lambda z: f(root * z) * mpmath.npdf(z), breaks)

    assert float(w2 * mean(lambda x: function(x) ** 2) + b2) == pytest.approx(made.q_star, rel=1e-12)
    assert float(w2 * mean(lambda x: derivative(x) ** 2)) == pytest.approx(made.chi_1, rel=1e-12)
    if made.phase == "chaotic":
        # The trapezoidal rule, whose error falls exponentially for analytic functions of Gaussians.
        nodes = np.linspace(-9.0, 9.0, 1201)
        weights = np.exp(-0.5 * nodes**2)
        weights /= weights.sum()
        c = made.c_star
        u = math.sqrt(made.q_star) * nodes[:, None]
        v = math.sqrt(made.q_star) * (c * nodes[:, None] + math.sqrt(1 - c * c) * nodes[None, :])
        plain = {"tanh": (np.tanh, lambda x: 1 / np.cosh(x) ** 2), "sin": (np.sin, np.cos)}[name]
        both = [float(weights @ (f(u) * f(v)) @ weights) for f in plain]
        assert (w2 * both[0] + b2) / made.q_star == pytest.approx(c, rel=1e-8)
        assert w2 * both[1] == pytest.approx(made.chi_c_star, rel=1e-7)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_nonlinearity_has_a_phase(activation):
    made = phase(activation, w_std=0.4, b_std=0.2, activation_args=ARGUMENTS.get(activation))
    maps = activation_maps(activation, ARGUMENTS.get(activation))
    q = np.array([made.q_star])
    squares = maps.squares(q)
    assert 0.16 * squares.value[0] + 0.04 == pytest.approx(made.q_star, rel=1e-13)
    # The fixed point is one of the gap's map, which is made from other formulas of the same layer.
    upper, _ = maps.at(q)(np.array([1.0 - made.c_star]))
    assert 0.16 * upper[0] / q[0] == pytest.approx(1.0 - made.c_star, abs=1e-12)
    assert made.phase == ("chaotic" if activation == "sign" else "ordered")
    if activation != "sign":
        assert made.chi_1 == pytest.approx(0.16 * squares.dot[0], rel=1e-13)
    critical = critical_w_std(maps, 0.2)
    if critical is not None:
        at = phase(activation, w_std=critical, b_std=0.2, activation_args=ARGUMENTS.get(activation))
        assert (at.phase, at.c_star, at.xi_c) == ("critical", 1.0, math.inf)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "abs", "identity", "exp_normalized"])
def test_what_only_scales_has_a_critical_point_and_no_line(name):
    line = critical_line(activation_maps(name, ARGUMENTS.get(name)))
    assert line.is_point
    assert critical_w_std(activation_maps(name, ARGUMENTS.get(name)), 0.1) is None
    at = phase(name, w_std=float(line.w_std[0]), activation_args=ARGUMENTS.get(name), input_variance=3.0)
    assert (at.phase, at.xi_q, at.xi_c) == ("critical", math.inf, math.inf)
    assert at.q_star == pytest.approx(3.0 * line.w_std[0] ** 2, rel=1e-14)  # the data's


def test_the_line_of_erf_is_the_closed_form():
    line = critical_line(activation_maps("erf"))
    q = line.q
    assert np.allclose(line.w_std**2, np.pi / 4 * np.sqrt(1 + 4 * q), rtol=1e-12)
    inside = (q > 1e-6) & (q < 1e3)
    expected = q - 0.5 * np.sqrt(1 + 4 * q) * np.arcsin(2 * q / (1 + 2 * q))
    assert np.allclose(line.b_std[inside] ** 2, expected[inside], rtol=1e-6)
    assert line.is_stable.all()


def test_several_fixed_points_are_listed_and_the_data_chooses():
    small = phase("monomial", w_std=0.8, b_std=0.3, activation_args={"degree": 2}, input_variance=0.1)
    assert [point.is_stable for point in small.fixed_points] == [True, False]
    # 3 w^2 q^2 - q + b^2 = 0
    assert small.q_star == pytest.approx((1 - math.sqrt(1 - 12 * 0.64 * 0.09)) / (6 * 0.64), rel=1e-12)
    with pytest.raises(ConfigError, match="which smaller inputs reach"):
        phase("monomial", w_std=0.8, b_std=0.3, activation_args={"degree": 2}, input_variance=5.0)


def test_without_biases_variances_vanish_or_correlations_do():
    made = phase("tanh", w_std=0.9)
    assert (made.q_star, made.phase) == (0.0, "ordered")
    assert made.chi_1 == pytest.approx(0.81, rel=1e-12)
    made = phase("tanh", w_std=1.5)
    assert (made.c_star, made.phase) == (0.0, "chaotic")
    assert made.critical_w_std == pytest.approx(1.0, rel=1e-12)
    assert phase("erf", w_std=1.0).critical_w_std == pytest.approx(math.sqrt(math.pi) / 2, rel=1e-14)


@pytest.mark.parametrize(("name", "w_std"), [("tanh", 0.9), ("tanh", 1.0), ("erf", 0.8), ("elu", 0.9), ("gelu", 1.2)])
def test_correlations_stop_changing_where_the_variance_of_a_smooth_network_vanishes(name, w_std):
    made = phase(name, w_std=w_std)
    assert (made.q_star, made.xi_c) == (0.0, math.inf)
    assert math.isnan(made.c_star)


def test_correlations_of_a_vanishing_variance_by_the_recursion_of_erf():
    w2, q, cross, kept = 0.64, 0.64, 0.64 * 0.6, []
    for _ in range(200):
        q, cross = (w2 * 2.0 / math.pi * math.asin(2.0 * k / (1.0 + 2.0 * q)) for k in (q, cross))
        kept.append(cross / q)
    assert kept[30] == pytest.approx(kept[-1], abs=1e-6)
    assert 0.5 < kept[-1] < 0.6


def test_correlations_of_relu_do_not_depend_on_w_std_without_biases():
    small, critical = phase("relu", w_std=1.0), phase("relu", w_std=math.sqrt(2.0))
    assert (small.q_star, small.phase, small.chi_1) == (0.0, "ordered", pytest.approx(0.5, rel=1e-14))
    assert (small.c_star, small.xi_c) == (critical.c_star, critical.xi_c) == (1.0, math.inf)
    # C(c) = (1 + 2 c^2) / 3 for x^2 and (9 c + 6 c^3) / 15 for x^3, at all variances
    made = phase("monomial", w_std=0.5, activation_args={"degree": 2}, input_variance=0.1)
    assert (made.q_star, made.c_star, made.chi_c_star) == (0.0, pytest.approx(0.5), pytest.approx(2.0 / 3.0))
    made = phase("monomial", w_std=0.5, activation_args={"degree": 3}, input_variance=0.1)
    assert (made.q_star, made.c_star, made.chi_c_star) == (0.0, pytest.approx(0.0), pytest.approx(0.6))


def test_rounding_near_zero_is_no_fixed_point():
    # V(q) = q - 2 q^2 + ... for tanh at w_std = 1 has no fixed point but 0
    made = phase("tanh", w_std=1.0)
    assert (made.q_star, made.phase) == (0.0, "critical")
    assert [point.q for point in made.fixed_points] == [0.0]
    # q = (w^2 - 1) / 2 to first order
    assert phase("tanh", w_std=math.sqrt(1.0 + 1e-6)).q_star == pytest.approx(0.5e-6, rel=1e-5)
    assert math.isnan(phase("identity", w_std=1.0).c_star)


def test_jumps_are_chaotic_everywhere():
    made = phase("sign", w_std=1.3, b_std=0.2)
    assert made.chi_1 == math.inf
    assert made.critical_w_std is None
    q, c = made.q_star, made.c_star
    assert (1.69 * 2 / math.pi * math.asin(c) + 0.04) / q == pytest.approx(c, rel=1e-12)
    assert made.chi_c_star == pytest.approx(1.69 * 2 / math.pi / math.sqrt(1 - c * c) / q, rel=1e-8)


def test_kinks_beside_zero_are_integrated_exactly():
    """relu(x - 1) with sqrt(q) = s: E phi^2 = (s^2 + 1) P(z > 1/s) - s p(1/s), and E phi'^2 = P(z > 1/s)."""
    formula = {"op": "elementwise", "function": "relu(x - 1)"}
    assert kinks("relu(x - 1)") == ((pytest.approx(1.0, abs=1e-14),), False)
    assert kinks("max(x, 0) + step(x + 2)")[1]
    made = phase(formula, w_std=1.5, b_std=0.5)
    s = math.sqrt(made.q_star)
    above = float(mpmath.ncdf(-1 / s))
    assert 2.25 * ((s * s + 1) * above - s * float(mpmath.npdf(1 / s))) + 0.25 == pytest.approx(made.q_star, rel=1e-12)
    assert (made.chi_1, made.phase, made.c_star) == (pytest.approx(2.25 * above, rel=1e-12), "ordered", 1.0)
    assert made.quadrature_error < 1e-12
    assert isometry(formula, w_std=1.5, q_star=s * s, depth=1).slope_spread == pytest.approx(1 / above - 1, rel=1e-12)


@pytest.mark.parametrize("name", ["relu", "abs", "sign"])
def test_formulas_agree_with_closed_forms(name):
    """Their series converge slowly; chaotic, ordered or jumping."""
    w_std, b_std = {"relu": (1.2, 0.3), "abs": (0.9, 0.2), "sign": (1.3, 0.2)}[name]
    made, right = (
        phase(one, w_std=w_std, b_std=b_std) for one in ({"op": "elementwise", "function": f"{name}(x)"}, name)
    )
    for field in ("q_star", "chi_1", "c_star", "chi_c_star", "xi_q", "xi_c"):
        assert getattr(made, field) == pytest.approx(getattr(right, field), rel=1e-9, abs=1e-12), field
    q, gaps = np.full(7, 1.3), np.array([1e-12, 1e-6, 1e-3, 0.1, 1.0, 1.9, 1.999])
    ours, closed = (activation_maps(one).at(q)(gaps) for one in ({"op": "elementwise", "function": f"{name}(x)"}, name))
    np.testing.assert_allclose(ours[0], closed[0], rtol=1e-9)
    if name != "sign":  # whose derivative has no mean square
        np.testing.assert_allclose(ours[1], closed[1], rtol=1e-9, atol=1e-12)


def smooth(x):
    return np.tanh(np.logaddexp(0.0, x))


# phi, phi' and its kinks, for a quadrature of its own.
FUNCTIONS = {
    "elu": (lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))), lambda x: np.exp(np.minimum(x, 0)), [0.0]),
    "mish": (
        lambda x: x * smooth(x),
        lambda x: smooth(x) + x * (1 - smooth(x) ** 2) * scipy.special.expit(x),
        [],
    ),
    "sigmoid": (scipy.special.expit, lambda x: scipy.special.expit(x) * scipy.special.expit(-x), []),
    "tanh": (np.tanh, lambda x: 1 / np.cosh(x) ** 2, []),
    "gelu": (
        lambda x: x * scipy.special.ndtr(x),
        lambda x: scipy.special.ndtr(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi),
        [],
    ),
}


def panels(breaks, step):
    """A Gauss-Legendre rule for the standard normal density."""
    ends = np.unique(np.clip([*np.arange(-13.0, 13.0 + step / 2, step), *breaks], -13.0, 13.0))
    x, weights = np.polynomial.legendre.leggauss(30)
    half = np.diff(ends)[:, None] / 2
    z = ((ends[1:] + ends[:-1])[:, None] / 2 + half * x).ravel()
    return z, (half * weights).ravel() * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def of_pairs(f, q, gap, kinks):
    """E f(u) f(v) and E f^2 - E f(u) f(v), from the part that u and v share: the mean over z of means and variances over a."""
    common, width = math.sqrt(q * (1 - gap)), math.sqrt(q * gap)
    near = [sign * math.sqrt(gap) * 2.0**k for sign in (-1, 1) for k in range(-3, 12)] if kinks else []
    z, weights = panels([0.0, *near], 0.5)
    mean, spread = np.empty_like(z), np.empty_like(z)
    for k, shared in enumerate(common * z):
        a, inner = panels([(kink - shared) / width for kink in kinks], 1.0)
        values = f(shared + width * a)
        mean[k] = inner @ values
        spread[k] = inner @ (values - mean[k]) ** 2
    return weights @ mean**2, weights @ spread


@pytest.mark.parametrize(
    ("name", "b_std", "beyond"),
    [
        ("elu", 0.3, 1e-6),
        ("elu", 0.3, 1e-4),
        ("elu", 0.3, 1e-2),
        ("elu", 0.1, 0.2),
        ("mish", 1.0, 1e-4),
        ("sigmoid", 0.3, 1e-2),
        ("tanh", 0.3, 1e-4),
        ("gelu", 1.0, 1e-4),
    ],
)
def test_chaos_beyond_criticality_agrees_with_another_quadrature(name, b_std, beyond):
    """Series that end at a degree gave ELU c_star = 0 for 1e-6, and 2% more correlation lengths for 1e-4."""
    function, slope, places = FUNCTIONS[name]
    w_std = critical_w_std(activation_maps(name), b_std) * (1 + beyond)
    made = phase(name, w_std=w_std, b_std=b_std)
    assert made.phase == "chaotic"
    q, gap = made.q_star, 1.0 - made.c_star
    z, weights = panels([0.0], 0.25)
    x = math.sqrt(q) * z
    assert w_std**2 * (weights @ function(x) ** 2) + b_std**2 == pytest.approx(q, rel=1e-11)
    assert w_std**2 * (weights @ slope(x) ** 2) == pytest.approx(made.chi_1, rel=1e-11)
    chi = w_std**2 * of_pairs(slope, q, gap, places)[0]
    moved = w_std**2 * of_pairs(function, q, gap, places)[1] / q
    # Newton's step from our gap to the fixed point of this map; near criticality the rounding of chi_1 is divided by beyond.
    assert (moved - gap) / (1 - chi) / gap == pytest.approx(0.0, abs=1e-9 + 1e-13 / beyond)
    assert made.chi_c_star == pytest.approx(chi, rel=1e-11)
    assert made.xi_c == pytest.approx(-1 / math.log(chi), rel=1e-9 + 1e-13 / beyond)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"activation": "tan", "w_std": 1.0}, "activation 'tan' is not one of relu"),
        ({"activation": "tanh", "w_std": -1.0}, "w_std=-1.0 must be a number above 0"),
        ({"activation": "tanh", "w_std": 1.0, "b_std": -0.1}, "b_std=-0.1 must be a number at least 0"),
        ({"activation": "tanh", "w_std": 1.0, "input_variance": 0.0}, "input_variance=0.0 must be"),
        ({"activation": "relu", "w_std": 1.5, "b_std": 0.1}, "grows without bound with depth"),
        ({"activation": "exp", "w_std": 1.5}, "Set a smaller w_std, or put layer_norm"),
        ({"activation": "leaky_relu", "w_std": 1.0}, "needs alpha"),
    ],
)
def test_what_is_refused(arguments, text):
    with pytest.raises(ConfigError) as caught:
        phase(**arguments)
    assert text in str(caught.value)


def test_growth_follows_the_layers_of_a_network():
    """The variance and the slope at c = 1 of the layers themselves, by differences of the kernel of nearby points."""
    made = growth("exp", w_std=1.1, b_std=0.3, depth=2, input_variance=0.2)
    dense = {"op": "dense", "features": 1, "w_std": 1.1, "b_std": 0.3}
    network = Architecture.from_spec([dense, {"op": "exp"}, dense, {"op": "exp"}, dense])
    p, first = np.array([0.2]), made.variance[0]
    assert made.variance[-1] == pytest.approx(float(network.map(p).nngp[0]), rel=1e-12)
    gap = 1e-5  # of the correlation after the first layer
    k = network.map(p - gap * first / 1.1**2, p, p).nngp
    assert (1.0 - float(k[0]) / made.variance[-1]) / gap == pytest.approx(made.kept, rel=1e-3)
    assert made.grows
    assert made.factor is None


@pytest.mark.parametrize("name", ["tanh", "erf", "gelu"])
def test_variances_of_the_table_are_no_exception(name):
    """The bias at which the answer is a variance of the table: rounding decides on which side of it the root seems to lie."""
    maps = activation_maps(name)
    line = critical_line(maps)
    for k in np.flatnonzero(line.is_stable & (line.q > 1e-5) & (line.q < 10.0))[::7]:
        found = critical_w_std(maps, float(line.b_std[k]), float(line.q[k]))
        assert found == pytest.approx(line.w_std[k], rel=1e-9)
