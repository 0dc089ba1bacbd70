# %% [markdown]
# # CIFAR-10, a corner of it
# 500 + 200 images. `CIFAR10_NPZ` names a file with `x_train`, `y_train`, `x_test`, `y_test`;
# `nk.load_dataset("cifar10", "cifar-10-python.tar.gz")` reads the official archive, and `download=True` fetches it.

# %%
import os

import matplotlib.pyplot as plt

import ntkpipe as nk

data = nk.load_dataset("npz", os.environ["CIFAR10_NPZ"], train_size=500, test_size=200)
architectures = {"fcn": nk.zoo.fcn(depth=3), "cnn_vec": nk.zoo.cnn_vec(depth=3)}
found = {}
for name, architecture in architectures.items():
    gram = nk.Gram(architecture, data)
    gram.compute()
    solution = nk.Eigh().solve(gram.train("ntk"), data.targets, ridges=1e-3)
    found[name] = solution.predict(gram.test("ntk"), times=[1, 10, 100, 1e3, 1e4, 1e5, nk.inf])

# %%
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
for name, predictions in found.items():
    metrics = predictions.metrics()
    axes.semilogx(metrics["time"], metrics["accuracy"], marker="o", label=name)
axes.set(xlabel="training time (steps)", ylabel="test accuracy")
axes.legend(frameon=False)
plt.show()

# %%
found["cnn_vec"].to_xarray()
