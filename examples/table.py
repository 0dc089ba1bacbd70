# %% [markdown]
# # A table with intervals
# The data are ten measurements of 442 patients and the progression of their diabetes within a year. The target is a number, so each
# prediction comes with an interval.

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes

import ntkpipe as nk

x, y = load_diabetes(return_X_y=True, as_frame=True)  # frames of pandas or polars, or arrays

data = nk.Dataset(x, y, test_fraction=0.2)
gram = nk.Gram(nk.zoo.fcn(), data)
gram.compute(progress=False)
solution = nk.Eigh().solve(gram.train("nngp"), data.targets, ridges=[0.1, 1.0], progress=False)
predictions = solution.predict(
    gram.test("nngp"), times=[10, 100, nk.inf], covariance="diagonal", noise="held_out", progress=False
)

# %% [markdown]
# The table shows the errors at each training time and ridge, and the share of test targets inside the 90% intervals. A prediction of
# the mean of the training targets has a root mean square error of 79.

# %%
predictions.metrics()[["time", "ridge", "rmse", "r2", "coverage_90"]]

# %% [markdown]
# ## Intervals
# The variance over networks is the uncertainty that the data leaves. `noise="held_out"` estimates the variance of the noise in the
# targets, from training points that were left out. The sum of both is the variance of a target.

# %%
entry = (0, 2, 1)  # kernel, time and ridge: the NNGP at t = inf with ridge 1
mean, target = predictions.mean[entry][:, 0], predictions.target[:, 0]
deviation = np.sqrt(predictions.target_variance(entry)).ravel()
order = np.argsort(mean)

figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
place = np.arange(len(mean))
axes.fill_between(
    place, (mean - 1.645 * deviation)[order], (mean + 1.645 * deviation)[order], alpha=0.25, label="90% interval"
)
axes.plot(place, mean[order], label="prediction")
axes.plot(place, target[order], ".", color="black", label="measured")
axes.set(xlabel="test patients, sorted by prediction", ylabel="progression")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## New patients
# For points whose targets are unknown, a solution gives the mean, the variance over networks and the noise.

# %%
new = solution.predict(x.head(3), times=nk.inf, ridges=1.0, covariance="diagonal", noise="held_out", progress=False)
new.to_pandas()[["test_index", "mean_0", "variance", "noise_0"]]
