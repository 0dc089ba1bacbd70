# %% [markdown]
# # Time series
# Bursts of one of two frequencies at random times, in noise: 250 + 100 series of 48 steps with two channels.

# %%
import matplotlib.pyplot as plt
import numpy as np

import ntkpipe as nk

rng, t = np.random.default_rng(0), np.arange(48)
y = rng.integers(0, 2, 350)
start, phase = rng.integers(0, 28, (350, 1)), rng.uniform(0, 6.28, (350, 1))
burst = np.sin((0.6 + 0.5 * y[:, None]) * t + phase) * ((t >= start) & (t < start + 20))
x = np.stack([burst, -burst], axis=2) + 0.7 * rng.normal(size=(350, 48, 2))
names = np.array(["slow", "fast"])[y]

figure, axes = plt.subplots(1, 2, figsize=(7, 2), sharey=True, layout="constrained")
for one, name in zip(axes, ("slow", "fast"), strict=True):
    one.plot(x[names == name][0])
    one.set(title=name, xlabel="step")
plt.show()

# %% [markdown]
# Convolutions along the series, then the mean over it. `layout="NLC"`: (points, length, channels).

# %%
data = nk.Dataset(x[:250], names[:250], x[250:], names[250:], layout="NLC")
gram = nk.Gram(nk.zoo.cnn_gap(depth=2, filter=[9]), data)
gram.compute()
predictions = (
    nk.Eigh()
    .solve(gram.train("ntk"), data.targets, ridges=1e-2)
    .predict(gram.test("ntk"), times=[10, 100, 1000, nk.inf])
)
predictions.metrics()[["time", "accuracy"]]

# %%
predictions.plot()
