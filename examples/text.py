# %% [markdown]
# # Text, letter by letter
# Every Python installation contains some thousand short texts: the first sentences of its functions' documentation. An infinitely wide
# convolutional network predicts from the letters to which part of the library a sentence belongs.

# %%
import importlib
import inspect

import numpy as np

import ntkpipe as nk

PARTS = {
    "files": ["os", "os.path", "shutil", "pathlib", "tempfile", "zipfile", "tarfile"],
    "internet": ["email.message", "http.client", "urllib.request", "urllib.parse", "socket", "ssl", "smtplib", "ftplib", "imaplib"],
    "numbers": ["math", "cmath", "statistics", "decimal", "fractions", "random"],
    "tests": ["unittest.case", "unittest.mock", "doctest", "unittest.suite", "unittest.loader"],
}  # fmt: skip


def sentences(module):
    """The first line of the documentation of everything that a module holds."""
    loaded = importlib.import_module(module)
    held = [value for _, value in inspect.getmembers(loaded)]
    held += [value for one in held if inspect.isclass(one) for _, value in inspect.getmembers(one)]
    own = [
        one
        for one in held
        if str(getattr(one, "__module__", None) or "").strip("_") in (module, module.partition(".")[0])
    ]
    return {text.splitlines()[0] for text in map(inspect.getdoc, own) if text and len(text.splitlines()[0]) >= 20}


found = {part: sorted(set().union(*map(sentences, modules))) for part, modules in PARTS.items()}
texts = [text for part in found.values() for text in part]
names = np.array([part for part, held in found.items() for _ in held])
{part: len(held) for part, held in found.items()}

# %% [markdown]
# Each letter becomes a vector with a single 1. Texts have different lengths. `mask` gives the lengths,
# and the kernel ignores everything after the end of a text.

# %%
LETTERS, LENGTH = "abcdefghijklmnopqrstuvwxyz ", 60
x = np.zeros((len(texts), LENGTH, len(LETTERS)), np.float32)
lengths = []
for row, text in enumerate(texts):
    letters = [LETTERS.index(letter) for letter in text.lower() if letter in LETTERS][:LENGTH]
    x[row, np.arange(len(letters)), letters] = 1
    lengths.append(len(letters))

data = nk.Dataset(
    x, names, layout="NLC", mask=np.array(lengths), test_fraction=0.3, train_size=300, test_size=150, standardize="none"
)
data

# %% [markdown]
# Two layers of convolutions look at 5 and then 9 letters; the network averages over the text.

# %%
gram = nk.Gram(nk.zoo.cnn_gap(depth=2, filter=[5]), data)
gram.compute(progress=False)
solution = nk.Eigh().solve(gram.train("ntk"), data.targets, ridges=1e-2, progress=False)
predictions = solution.predict(gram.test("ntk"), times=[100, 1e3, 1e4, 1e5, 1e6, nk.inf], progress=False)
predictions.metrics()[["time", "accuracy"]]

# %% [markdown]
# The accuracy of always predicting the most frequent part is:

# %%
labels = predictions.label
float(np.bincount(labels).max() / len(labels))

# %%
predictions.plot()

# %% [markdown]
# Some test sentences with their true part and the predicted one:

# %%
predicted = predictions.mean[0, -1, 0].argmax(1)
for i in range(0, len(labels), 19):
    true, guess = predictions.class_names[labels[i]], predictions.class_names[predicted[i]]
    print(f"{true:9} {guess:9} {texts[int(predictions.test_index[i])][:80]}")
