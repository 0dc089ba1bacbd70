# %% [markdown]
# # A table in five lines
# 442 patients, ten features, and how far their diabetes went in a year. Open this file as a notebook in VS Code, or with jupytext.

# %%
from sklearn.datasets import load_diabetes

import ntkpipe as nk

x, y = load_diabetes(return_X_y=True, as_frame=True)  # frames of pandas or polars, or arrays

data = nk.Dataset(x, y, test_fraction=0.2)
gram = nk.Gram(nk.zoo.fcn(), data)
gram.compute()
solution = nk.Eigh().solve(gram.train("nngp"), data.targets, ridges=[0.1, 1.0])
predictions = solution.predict(gram.test("nngp"), covariance="diagonal", noise="held_out")

# %% [markdown]
# Errors at every time of training and every ridge, beside that of predicting the mean, and how many test targets lie in the intervals.

# %%
predictions.metrics()[["time", "ridge", "rmse", "r2", "coverage_90"]]

# %%
predictions.plot()

# %% [markdown]
# New patients, whose targets nobody knows: the mean and the variance over networks, and the noise beside it.

# %%
new = solution.predict(x.head(3), times=nk.inf, ridges=1.0, covariance="diagonal", noise="held_out")
new.to_pandas()[["test_index", "mean_0", "variance", "noise_0"]]
