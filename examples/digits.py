# %% [markdown]
# # How a network learns, and what it learns last
# An infinitely wide network with three hidden layers, trained on 600 handwritten digits: its test error at every time of training.

# %%
import matplotlib.pyplot as plt
import numpy as np

import ntkpipe as nk

data = nk.load_dataset("digits", train_size=600, test_size=200)
gram = nk.Gram(nk.zoo.fcn(depth=3), data)
gram.compute()
solution = nk.Eigh().solve(gram.train("ntk"), data.targets, ridges=1e-3)
predictions = solution.predict(gram.test("ntk"), times=[*np.geomspace(1, 1e6, 25), nk.inf])
predictions.plot()

# %% [markdown]
# Outputs of the ten classes for one test point that is learnt late.

# %%
means = predictions.to_xarray()["mean"].isel(kernel=0, ridge=0)
right = means.idxmax("class") == predictions.to_xarray()["target"].idxmax("class")
late = int(right.sum("time").where(right.isel(time=-1), 99).to_numpy().argmin())

figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
for name in predictions.class_names:
    axes.semilogx(means["time"][:-1], means.sel({"class": name}).isel(test=late)[:-1], label=name)
axes.set(xlabel="training time (steps)", ylabel="mean output", title=f"test point {int(means['test'][late])}")
axes.legend(ncols=2, fontsize="small", frameon=False)
plt.show()

# %% [markdown]
# The spectrum says why: directions of small eigenvalues take long.

# %%
eigenvalues = solution.spectrum()[::-1]
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.loglog(np.arange(1, len(eigenvalues) + 1), eigenvalues)
axes.set(xlabel="number", ylabel="eigenvalue of the NTK")
plt.show()
