# %% [markdown]
# # A learning curve, measured and predicted
# This example shows how the test error decreases with the number of training points, and how well the kernel's spectrum predicts this.
# The data are handwritten digits, and the network has three infinitely wide hidden layers.

# %%
import matplotlib.pyplot as plt
import pandas as pd
from sklearn.datasets import load_digits

import ntkpipe as nk

digits = load_digits()
network = nk.zoo.fcn(depth=3)


def split(n=None):
    """The same random test points each time, and the first n training points of one random order."""
    return nk.Dataset(digits.images / 16, digits.target, test_fraction=0.3, train_size=n)


# %% [markdown]
# ## Measured
# Each size gets its own solution. The training sets are nested: each contains the smaller ones.

# %%
sizes = [20, 40, 80, 160, 320, 640, 1200]
measured = []
for n in sizes:
    data = split(n)
    gram = nk.Gram(network, data)
    gram.compute(progress=False)
    solution = nk.Eigh().solve(gram.train("ntk"), data.targets, ridges=1e-3, progress=False)
    measured.append(solution.predict(gram.test("ntk"), times=nk.inf, progress=False).metrics().iloc[0])
table = pd.DataFrame(
    {"training points": sizes, **{name: [one[name] for one in measured] for name in ("accuracy", "mse")}}
)
table

# %% [markdown]
# ## Predicted
# The theory of kernel regression needs the eigenvalues of the largest kernel and the labels' share of each eigenvector. It predicts the
# mean squared error of smaller training sets, without solving any of them. It does not predict accuracy.

# %%
spectrum = nk.spectrum(gram.train("ntk"), data.targets, ridges=[1e-3], progress=False)
predicted = [one.test_mse for one in spectrum.learning_curve(sizes[:-1])]

figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
axes.loglog(sizes, table["mse"], "o", label="measured")
axes.loglog(sizes[:-1], predicted, "-", label="predicted from the spectrum")
axes.set(xlabel="training points", ylabel="test mean squared error")
axes.legend(frameon=False)
plt.show()

# %%
pd.DataFrame({"training points": sizes[:-1], "measured": table["mse"][:-1], "predicted": predicted})

# %% [markdown]
# ## The effect of more data
# For larger training sets the curve is extrapolated, with a band. The theory does not cover this part. A wide band means that little is
# known.

# %%
further = spectrum.extrapolated([2400, 4800, 9600])
pd.DataFrame([{"training points": one.n, "mse": one.test_mse, "low": one.low, "high": one.high} for one in further])
