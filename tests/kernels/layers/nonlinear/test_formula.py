"""Formulas as text: what is read, in which spelling, and everything that is refused."""

from __future__ import annotations

import math
import subprocess
import sys

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.layers.nonlinear.formula import (
    FUNCTIONS,
    PYTHON,
    canonical_covariance,
    canonical_function,
    canonical_text,
    evaluate_number,
    parse,
)
from ntkpipe.kernels.layers.nonlinear.operations import apply_formula


@pytest.mark.parametrize(
    ("text", "canonical", "at_half"),
    [
        ("x*sigmoid( x )", "x * sigmoid(x)", 0.5 / (1 + math.exp(-0.5))),
        ("-x**2", "-x ** 2.0", -0.25),
        ("(-x)**2", "(-x) ** 2.0", 0.25),
        ("1-(x-3)-x", "1.0 - (x - 3.0) - x", 3.0),
        ("x/(2*x)/4", "x / (2.0 * x) / 4.0", 0.125),
        ("+x", "x", 0.5),
        ("max(x, 0) + expm1(min(x, 0))", "max(x, 0.0) + expm1(min(x, 0.0))", 0.5),
        ("cos(pi*x) + e*0", "cos(pi * x) + e * 0.0", math.cos(math.pi / 2)),
        ("2", "2.0", 2.0),
    ],
)
def test_canonical_text(text, canonical, at_half):
    assert canonical_function(text) == canonical
    assert canonical_function(canonical) == canonical
    assert evaluate_number(parse(text, ("x",)), {"x": 0.5}) == pytest.approx(at_half, rel=1e-15, abs=1e-15)


REFUSED = {
    "x.real": "attribute",
    "x.__class__.__bases__": "attribute",
    "(1).__class__": "attribute",
    "__import__('os').system('ls')": "calls attribute",
    "eval('1')": "calls eval",
    "getattr(x, 'y')": "calls getattr",
    "exp(x)(x)": "calls call",
    "lambda: x": "lambda",
    "(lambda: 1)()": "calls lambda",
    "[x for x in (1,)]": "list comp",
    "[x]": "list",
    "x[0]": "subscript",
    "{x: 1}": "dict",
    "(y := x)": "named expr",
    "x if x else 1": "if exp",
    "x and x": "and",
    "not x": "not",
    "x < 1": "compare",
    "x // 2": "floor div",
    "x % 2": "mod",
    "x << 2": "l shift",
    "x @ x": "mat mult",
    "~x": "invert",
    "f'{x}'": "joined str",
    "'a' * 9": "only numbers",
    "1j * x": "only numbers",
    "True * x": "only numbers",
    "... * x": "only numbers",
    "y": "name y; known names: x, pi, e",
    "exp": "name exp",
    "tan(x)": "calls tan; known functions: exp",
    "exp(x, x)": "1 plain argument",
    "exp(x=x)": "1 plain argument",
    "exp(*x)": "starred",
    "max(x)": "2 plain argument",
    "2 ** x": r"write exp\(b \* log\(a\)\)",
    "9 ** 9 ** 9": "exponent that is not a number",
    "x ** 33": "exponent 33",
    "x ** (1/2)": "exponent that is not a number",
    "x * 1e999": "too large for float64",
    "x * 1" + "0" * 400: "too large for float64",
    "9" * 5000: "cannot be read",
    "x ; x": "cannot be read",
    "x = 1": "cannot be read",
    "import os": "cannot be read",
    "x +": "cannot be read",
    "": "cannot be read",
    "x\0": "cannot be read",
    "(" * 3000 + "x" + ")" * 3000: "cannot be read",
    "-" * 8000 + "x": "cannot be read|too large",
    "x" + ".x" * 4000: "attribute|cannot be read",
    "exp(" * 70 + "x" + ")" * 70: "nested 64 deep",
    "+".join(["exp(x*(x+x))"] * 60): "at most 256",
    "x " * 5000: "too long",
    "log(x)": "not a finite real number at x = -3.1",
    "x ** 0.5": "not a finite real number",
    "x / 0": "not a finite real number",
    "exp(exp(exp(9)))": "not a finite real number",
}


@pytest.mark.parametrize("text", REFUSED, ids=[str(index) for index in range(len(REFUSED))])
def test_anything_else_is_refused_by_name(text):
    with pytest.raises(ConfigError, match=REFUSED[text]) as caught:
        canonical_function(text)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("value", [None, 3, b"x", ["x"]])
def test_only_text_is_a_formula(value):
    with pytest.raises(ConfigError, match="must be text"):
        canonical_function(value)


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet="xkpq0123456789.+-*/() ,'_:=[]{}~<>%@explogsint", max_size=40))
def test_any_text_is_a_formula_or_refused(text):
    try:
        canonical = canonical_function(text)
    except ConfigError:
        return
    assert canonical_function(canonical) == canonical


_TREES = st.recursive(
    st.just(("name", "x")) | st.floats(0.1, 9.0).map(lambda v: ("number", v)),
    lambda inner: (
        st.tuples(st.sampled_from("+-*/"), inner, inner)
        | st.tuples(st.sampled_from(("negative", "tanh", "abs")), inner)
        | st.tuples(st.just("power"), inner, st.sampled_from((-2.0, 3.0, 0.5)))
        | st.tuples(st.sampled_from(("max", "min")), inner, inner)
    ),
    max_leaves=20,
)


@settings(deadline=None, max_examples=200)
@given(_TREES)
def test_canonical_text_is_read_back_to_the_same_tree(tree):
    assert parse(canonical_text(tree), ("x",)) == tree


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_on_arrays_are_pythons(name):
    """Two libraries' functions, each with a few units in the last place."""
    first = np.array([-0.9, -0.3, 0.2, 0.7, 0.99])
    first = np.abs(first) if name in ("sqrt", "log") else first
    second = np.array([0.4, -0.2, 0.2, 1.5, -2.0])
    tree = (name, ("name", "k"), ("name", "p"))[: 1 + FUNCTIONS[name]]
    constant = (name, *(("number", 0.5),) * FUNCTIONS[name])
    with jax.enable_x64(True):
        k, p = jax.numpy.asarray(first), jax.numpy.asarray(second)
        made = np.asarray(apply_formula(tree, k=k, p=p))
        folded = np.asarray(apply_formula(constant, k=k, p=p))
    arguments = (first, second)[: FUNCTIONS[name]]
    expected = [PYTHON[name](*values) for values in zip(*arguments, strict=True)]
    np.testing.assert_allclose(made, expected, rtol=1e-14)
    assert (folded == PYTHON[name](*[0.5] * FUNCTIONS[name])).all()


def test_kernels_are_symmetric_and_real():
    assert canonical_covariance("2/pi*asin(2*k/sqrt((1+2*p)*(1+2*q)))").startswith("2.0 / pi * asin")
    for text, reason in {
        "k * p": "swapped",
        "k / (p - q) ** 2": "not a finite real number",
        "x": "name x; known names: k, p, q",
        "sqrt(-p)": "not a finite",
    }.items():
        with pytest.raises(ConfigError, match=reason):
            canonical_covariance(text)


def test_reading_needs_no_jax():
    code = (
        "import sys; from ntkpipe.kernels.layers.nonlinear.formula import canonical_function as f; f('x*erf(x)');"
        "assert not {'jax', 'numpy'} & set(sys.modules)"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
