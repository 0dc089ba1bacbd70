"""Ensembles of finite networks and their linearisations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_kinds import ERF, FLATTEN, GAP, conv, dense

from ntkpipe import finite
from ntkpipe.dynamics.heavy_ball import HeavyBall
from ntkpipe.finite.ensemble import Training, draw_members, largest_curvature, member_seed, train_members
from ntkpipe.finite.linearised import member_kernel, train_linearised
from ntkpipe.finite.network import network
from ntkpipe.kernels.accelerator import precision_context

SHAPE = (4, 3, 2)
DENSE = [FLATTEN, dense(6), ERF, dense(3)]
CONV = [conv(features=5), ERF, GAP, dense(3)]
STANDARD = [FLATTEN, dense(6, parameterization="standard"), ERF, dense(3, parameterization="standard")]
STEPS = (0, 1, 2, 7)


def problem(n=5, q=4, c=3):
    rng = np.random.default_rng(1)
    return rng.standard_normal((n, *SHAPE)), rng.standard_normal((n, c)), rng.standard_normal((q, *SHAPE))


def members(spec, count=2):
    return draw_members(spec, SHAPE, [member_seed(0, 6, k) for k in range(count)], dtype=np.float64)


def one_of(weights, k):
    return jax.tree.map(lambda a: a[k], weights)


def linear_in_weights(spec, weights, x, y, points, training):
    """Gradient descent on the weights of the linearisation itself, by `jax.jvp`."""
    made = network(spec, SHAPE)
    with precision_context(np.float64):
        first = jax.tree.map(jnp.asarray, weights)

        def outputs(weights, x):
            off = jax.tree.map(jnp.subtract, weights, first)
            f, moved = jax.jvp(lambda w: made.forward(w, x)[0], (first,), (off,))
            return training.output_scale * ((0.0 if training.centred else 1.0) * f + moved)

        def loss(weights):
            return jnp.sum(jnp.square(outputs(weights, x) - y)) / (2 * y.size)

        velocity, found = jax.tree.map(jnp.zeros_like, first), []
        weights, own = first, training.rate / training.output_scale**2
        for step in range(training.steps[-1] + 1):
            if step in training.steps:
                found.append((np.asarray(outputs(weights, x)), np.asarray(outputs(weights, points))))
            velocity = jax.tree.map(lambda v, g: training.momentum * v - own * g, velocity, jax.grad(loss)(weights))
            weights = jax.tree.map(jnp.add, weights, velocity)
    return [np.stack(column) for column in zip(*found, strict=True)]


@pytest.mark.parametrize("spec", [DENSE, CONV, STANDARD], ids=["dense", "conv", "standard"])
@pytest.mark.parametrize(
    "training",
    [Training(0.3, STEPS), Training(0.3, STEPS, 0.8), Training(0.3, STEPS, output_scale=3.0, centred=True)],
    ids=["descent", "momentum", "lazy"],
)
def test_a_linearisation_moves_as_the_model_that_is_linear_in_the_weights(spec, training):
    x, y, points = problem()
    weights = one_of(members(spec), 1)
    made = train_linearised(member_kernel(spec, weights, x, points), y, training)
    train, far = linear_in_weights(spec, weights, x, y, points, training)
    np.testing.assert_allclose(made.train, train, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(made.points, far, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_a_linear_network_is_its_linearisation(momentum):
    """One dense layer without a hidden one."""
    spec, (x, y, points) = [FLATTEN, dense(3)], problem()
    weights, training = members(spec), Training(0.4, STEPS, momentum)
    made = train_members(spec, weights, x, y, points, training)
    for k in range(2):
        linear = train_linearised(member_kernel(spec, one_of(weights, k), x, points), y, training)
        np.testing.assert_allclose(made.train[k], linear.train, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(made.points[k], linear.points, rtol=1e-10, atol=1e-12)


def test_a_readout_trained_alone_is_a_linear_model_with_the_nngp_of_its_layers():
    x, y, points = problem()
    weights, training = members(DENSE), Training(0.4, STEPS, readout=True)
    made = train_members(DENSE, weights, x, y, points, training)
    kernel = member_kernel(DENSE, one_of(weights, 1), x, points, readout=True)
    np.testing.assert_allclose(
        kernel.train, finite.empirical_kernel(DENSE, one_of(weights, 1), x).nngp, rtol=1e-10, atol=1e-12
    )
    linear = train_linearised(kernel, y, training)
    np.testing.assert_allclose(made.points[1], linear.points, rtol=1e-9, atol=1e-11)
    np.testing.assert_array_equal(made.weights[0][0], weights[0][0])


def test_one_step_by_hand():
    """Against the gradient of the loss by `jax.grad`, of a member in a chunk with others."""
    x, y, points = problem()
    weights = members(DENSE, 3)
    made = train_members(DENSE, weights, x, y, points, Training(0.2, (0, 1)))
    with precision_context(np.float64):
        own = jax.tree.map(jnp.asarray, one_of(weights, 2))

        def loss(w):
            return jnp.sum(jnp.square(network(DENSE, SHAPE).forward(w, x)[0] - y)) / (2 * y.size)

        moved = jax.tree.map(lambda w, g: w - 0.2 * g, own, jax.grad(loss)(own))
        right, start = network(DENSE, SHAPE).forward(moved, points)[0], float(loss(own))
    np.testing.assert_allclose(made.points[2, 1], right, rtol=1e-10, atol=1e-12)
    assert made.loss[2, 0] == pytest.approx(start, rel=1e-12)


def test_a_centred_network_starts_at_zero_and_batches_are_each_members_own():
    x, y, points = problem()
    weights = members(DENSE, 2)
    made = train_members(DENSE, weights, x, y, points, Training(0.2, STEPS, output_scale=2.0, centred=True))
    assert not made.points[:, 0].any()
    assert made.points[:, 1].any()
    stochastic = Training(0.2, STEPS, batch_size=2, seed=3)
    first = train_members(DENSE, weights, x, y, points, stochastic)
    alone = train_members(DENSE, jax.tree.map(lambda a: a[1:], weights), x, y, points, stochastic, first=1)
    np.testing.assert_allclose(first.points[1:], alone.points, rtol=1e-10, atol=1e-12)
    assert (
        np.abs(first.points - train_members(DENSE, weights, x, y, points, Training(0.2, STEPS)).points)[:, -1].max()
        > 1e-3
    )


def test_curvature_is_the_largest_eigenvalue_of_the_members_kernel():
    x, y, points = problem()
    weights = members(DENSE)
    found = largest_curvature(DENSE, weights, x)
    made = train_members(DENSE, weights, x, y, points, Training(0.1, (0,)), curvature=True)
    np.testing.assert_allclose(made.curvature[:, 0], found, rtol=1e-10)
    for k in range(2):
        kernel = member_kernel(DENSE, one_of(weights, k), x, points)
        right = np.linalg.eigvalsh(kernel.train)[-1] / y.size
        assert found[k] == pytest.approx(right, rel=1e-3)
        assert kernel.largest == pytest.approx(right, rel=1e-3)


def test_momentum_in_whole_steps():
    """The filter against the recurrence on a matrix; without momentum it is that of gradient descent."""
    values = np.array([0.0, 0.3, 4.0, 11.0])
    for momentum in (0.0, 0.6):
        kind = HeavyBall(5, 2, 0.7, momentum)
        dual, before = np.zeros(4), np.zeros(4)
        for _ in range(6):
            dual, before = dual + momentum * (dual - before) + 0.07 * (1.0 - values * dual), dual
        np.testing.assert_allclose(kind.weights(values, 6), dual, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(kind.decay(values, 6), 1.0 - values * dual, rtol=1e-12, atol=1e-15)
    assert HeavyBall(5, 2, 0.7, 0.6).max_learning_rate(11.0) == pytest.approx(2 * 1.6 * 10 / 11)
