# %% [markdown]
# # Images as PyTorch has them
# Tensors (n, channels, height, width), on the processor: `layout="NCHW"` says which axis is which.

# %%
import numpy as np
from sklearn.datasets import load_digits

import ntkpipe as nk

x, y = load_digits(return_X_y=True)
x = x.reshape(-1, 1, 8, 8).astype(np.float32)  # or a torch.Tensor
rotated = np.rot90(x, axes=(2, 3))
x = np.concatenate([x, rotated], axis=1)  # two channels

data = nk.Dataset(x[:300], y[:300], x[300:450], y[300:450], layout="NCHW")
gram = nk.Gram(nk.zoo.cnn_vec(depth=3), data)
gram.compute()
predictions = (
    nk.Eigh().solve(gram.train("ntk"), data.targets, ridges=1e-3).predict(gram.test("ntk"), times=[100, nk.inf])
)
predictions.metrics()[["time", "accuracy"]]

# %% [markdown]
# Without a layout, arrays that look like another one are refused rather than read as 2 x 8 pixels of 8 channels.

# %%
try:
    nk.Dataset(np.zeros((20, 3, 32, 32), np.float32), np.arange(20) % 2, test_fraction=0.5)
except nk.errors.DataError as error:
    print(error)
