# %% [markdown]
# # CIFAR-10: how two networks learn
# Two infinitely wide networks learn 500 images. This example shows which of 200 test images they classify correctly, and at which
# training time.
#
# The variable `CIFAR10_NPZ` names a file with `x_train`, `y_train`, `x_test` and `y_test`. Without such a file the notebook stops here.
# `nk.load_dataset("cifar10", path="cifar-10-python.tar.gz")` reads the official archive instead, and `download=True` fetches it.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np

import ntkpipe as nk

path = os.environ.get("CIFAR10_NPZ", "cifar10.npz")
if not os.path.exists(path):
    raise SystemExit(
        f"skipped: {path} is not there. Set CIFAR10_NPZ to a file with x_train, y_train, x_test and y_test."
    )

data = nk.load_dataset("npz", path=path, train_size=500, test_size=200)
data

# %% [markdown]
# `fcn` is fully connected, with three hidden layers. `cnn_vec` has three convolutions and no pooling. Each Gram matrix is computed once;
# one eigendecomposition then answers every training time.

# %%
times = [*np.geomspace(1, 1e5, 21), nk.inf]
found = {}
for name, network in {"fcn": nk.zoo.fcn(depth=3), "cnn_vec": nk.zoo.cnn_vec(depth=3)}.items():
    gram = nk.Gram(network, data)
    gram.compute(progress=False)
    solution = nk.Eigh().solve(gram.train("ntk"), data.targets, ridges=1e-3, progress=False)
    found[name] = solution.predict(gram.test("ntk"), times=times, progress=False)

# %% [markdown]
# ## Accuracy along training

# %%
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
for name, predictions in found.items():
    metrics = predictions.metrics()
    axes.semilogx(metrics["time"][:-1], metrics["accuracy"][:-1], marker="o", markersize=3, label=name)
axes.set(xlabel="training time (steps)", ylabel="test accuracy")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## One image that is learnt late
# The figure shows the ten outputs of the convolutional network for the test image whose predicted class becomes right last.

# %%
predictions = found["cnn_vec"]
means = predictions.to_xarray()["mean"].isel(kernel=0, ridge=0)
right = (means.argmax("class") == predictions.to_xarray()["label"]).to_numpy()  # (time, test)
first = np.where(right[-1], right.argmax(0), -1)  # at which time each is right for the first time
late = int(first.argmax())

figure, (picture, axes) = plt.subplots(1, 2, figsize=(7, 3), width_ratios=[1, 2.5], layout="constrained")
picture.imshow(np.load(path)["x_test"][int(predictions.test_index[late])])
picture.set_axis_off()
for name, outputs in zip(
    predictions.class_names, means.isel(test=late).transpose("class", "time").to_numpy(), strict=True
):
    axes.semilogx(times[:-1], outputs[:-1], label=name)
axes.set(xlabel="training time (steps)", ylabel="mean output")
axes.legend(ncols=2, fontsize="x-small", frameon=False)
plt.show()

# %% [markdown]
# ## Why some images are learnt late
# Along each eigenvector of the kernel the error decays at a rate proportional to its eigenvalue. The eigenvalues span more than three
# orders of magnitude, and so do the times.

# %%
eigenvalues = solution.spectrum()[::-1]
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.loglog(np.arange(1, len(eigenvalues) + 1), eigenvalues)
axes.set(xlabel="index", ylabel="eigenvalue of the NTK")
plt.show()
