# %% [markdown]
# # Finite and infinite width
# Networks with 32 to 512 hidden units are trained by gradient descent on 60 handwritten digits, and compared with the predictions for
# infinite width.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import ntkpipe as nk
from ntkpipe import finite

images, labels = load_digits(return_X_y=True)
images = ((images - images.mean()) / images.std()).astype(np.float32)
x, y, x_test = images[:60], np.eye(10, dtype=np.float32)[labels[:60]] - 0.1, images[60:100]

network = nk.zoo.fcn(depth=2)
rate, steps = 5.0, [0, 1, 3, 10, 30, 100, 300]
infinite = nk.predict_in_memory(
    network, x, y, x_test, times=steps, dynamics="gradient_descent", learning_rate=rate, covariance="diagonal"
)

# %% [markdown]
# ## Training
# Twenty networks of each width are trained together in JAX, by gradient descent on `||f - y||^2 / (2 n c)`.

# %%
widths, members = [32, 128, 512], 20


def trained(width):
    """Outputs (steps, networks, test points, outputs) of networks with so many units in each hidden layer."""
    spec = finite.at_width(network.to_spec(), width)
    drawn = [finite.init(spec, x.shape[1:], seed=seed) for seed in range(members)]
    weights = jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn)

    def loss(w):
        return jnp.sum((finite.apply(spec, w, jnp.asarray(x)) - y) ** 2) / (2 * y.size)

    def step(w):
        return jax.tree.map(lambda a, g: a - rate * g, w, jax.grad(loss)(w))

    step = jax.jit(jax.vmap(step))
    outputs = jax.jit(jax.vmap(lambda w: finite.apply(spec, w, jnp.asarray(x_test))))
    shown = []
    for now in range(steps[-1] + 1):
        if now in steps:
            shown.append(np.asarray(outputs(weights)))
        weights = step(weights)
    return np.stack(shown)


outputs = {width: trained(width) for width in widths}

# %% [markdown]
# ## One output during training
# The lines are twenty networks of 512 units. The band is the mean and two standard deviations that the theory predicts.

# %%
point, output = 0, int(labels[60])
mean = infinite.mean[:, point, output]
deviation = np.sqrt(infinite.covariance[:, point])

figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
axes.fill_between(steps, mean - 2 * deviation, mean + 2 * deviation, alpha=0.25, label="infinite width, two deviations")
axes.plot(steps, mean, label="infinite width, mean")
axes.plot(steps, outputs[512][:, :, point, output], color="black", linewidth=0.5, alpha=0.5)
axes.set_xscale("symlog")
axes.set(xlabel="gradient step", ylabel=f"output for class {output}, test point {point}")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## The kernel by width
# The kernels of finite networks at initialisation differ from the infinite one by random deviations of order `width^-1/2`.

# %%
exact = network(x).ntk
apart = []
for width in widths:
    spec = finite.at_width(network.to_spec(), width)
    kernels = [
        finite.empirical_kernel(spec, finite.init(spec, x.shape[1:], seed=seed), x, outputs="trace").ntk
        for seed in range(5)
    ]
    apart.append(np.mean([np.linalg.norm(kernel - exact) / np.linalg.norm(exact) for kernel in kernels]))

# %% [markdown]
# ## Means and variances by width
# The figure compares means and standard deviations of outputs over networks with the predicted ones, after the last step.

# %%
spread = [outputs[width][-1].std(axis=0, ddof=1) for width in widths]
ratios = [np.sqrt((one**2).mean() / infinite.covariance[-1].mean()) for one in spread]

figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
left.loglog(widths, apart, "o-", label="measured")
left.loglog(widths, apart[-1] * np.sqrt(widths[-1] / np.array(widths)), "--", label="width$^{-1/2}$")
left.set(xlabel="width", ylabel="relative distance of kernels")
left.legend(frameon=False)
right.semilogx(widths, ratios, "o-")
right.axhline(1, linestyle="--")
right.set(xlabel="width", ylabel="measured / predicted deviation")
for axes in (left, right):
    axes.set_xscale("log", base=2)
    axes.set_xticks(widths, [str(width) for width in widths])
plt.show()

# %% [markdown]
# `ntkpipe validate` makes this comparison for any run, with standard errors and verdicts.
