"""The identity of a Gram store: everything that determines its values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ntkpipe.errors import ConfigError, IdentityError
from ntkpipe.storage.checksum import digest

Symmetry = Literal["none", "even", "odd"]
SYMMETRIES: tuple[Symmetry, ...] = get_args(Symmetry)
FUNCTION = "function"
"""Formula version of a kernel that is a user's function. `architecture` is then the name that the user gave it."""
EMPIRICAL = "empirical 1"
"""Formula version of a finite network's kernels. `architecture` is then the digest of its layers and weights."""
EMPIRICAL_FULL = "empirical full 1"
"""Formula version of a finite network's kernel between all pairs of outputs.

Its rows are all outputs of all points, with the outputs of a point next to each other.
"""
FEATURES = "features 1"
"""Formula version of products of given features. `data` is the hash of their values, `architecture` their divisor."""

_ONE = {FUNCTION: ("gram",), FEATURES: ("gram",), EMPIRICAL_FULL: ("ntk",)}

_REMEDY = {
    "data": "use the data and preprocessing of the store",
    "architecture": "use the kernel of the store",
    "formula_version": "use the version of ntkpipe that made the store",
    "dtype": "set kernel.dtype to the stored value",
    "stored_dtype": "set store.dtype to the stored value",
    "edge": "set grid.edge to the stored value",
    "n_train": "use the data of the store",
    "n_test": "use the data of the store",
    "symmetry": "set augment to the stored value",
}


@dataclass(frozen=True)
class GramIdentity:
    """The settings that determine the values in a Gram store, and nothing else.

    Solver, ridge, time, subset size and library versions are not included. The receipt of every tile records the
    library versions.

    Args:
        data: content hash of the prepared training and test images.
        architecture: fingerprint of the kernel spec.
        formula_version: version of the kernel formulas.
        dtype: dtype in which tiles are computed, `float32` or `float64`.
        stored_dtype: dtype in which tiles are stored, `float32` or `float64`.
        edge: rows per tile.
        n_train: number of images of the full training set. Subsets are its leading blocks.
        n_test: number of images of the full test set; 0 if there is none.
        symmetry: `none` for the kernel itself, `even` or `odd` for k(x, y) plus or minus k(x, flipped y). `none` is
            left out of key and manifest, so that stores from before this field existed keep theirs.
        spec: the kernel spec, for readers of the manifest. Comparisons use `architecture` instead.
    """

    data: str
    architecture: str
    formula_version: str
    dtype: str
    stored_dtype: str
    edge: int
    n_train: int
    n_test: int
    symmetry: Symmetry = "none"
    spec: Any = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in ("dtype", "stored_dtype"):
            if getattr(self, name) not in ("float32", "float64"):
                raise ConfigError(f"a Gram store holds float32 or float64, not {name}={getattr(self, name)!r}")
        if self.symmetry not in SYMMETRIES:
            raise ConfigError(f"a Gram store's symmetry={self.symmetry!r} is not one of {', '.join(SYMMETRIES)}")
        if self.edge < 1 or self.n_train < 1 or self.n_test < 0:
            raise ConfigError(f"a Gram store needs positive sizes: {self.edge=}, {self.n_train=}, {self.n_test=}")

    @property
    def kernels(self) -> tuple[str, ...]:
        """Names of the kernels of every tile.

        A network has two kernels. A function, given features, or all pairs of outputs have one kernel.
        """
        return _ONE.get(self.formula_version, ("nngp", "ntk"))

    @property
    def key(self) -> str:
        """A hash of 16 hexadecimal digits. Equal identities have equal keys."""
        return digest(self._stated())

    def compared(self) -> dict[str, Any]:
        """Return the fields that comparisons of identities use."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.compare}

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, without the symmetry `none`. They are JSON-ready if the spec is."""
        return {**self._stated(), "spec": self.spec}

    def _stated(self) -> dict[str, Any]:
        stated = self.compared()
        if self.symmetry == "none":
            del stated["symmetry"]
        return stated

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> GramIdentity:
        """Make an identity from the values that `to_dict` returned.

        Raises:
            IdentityError: if fields are missing or unknown, because another version of ntkpipe wrote them.
        """
        names = {f.name for f in dataclasses.fields(cls)}
        if set(content) | {"symmetry"} != names:
            odd = ", ".join(sorted(names ^ (set(content) | {"symmetry"})))
            raise IdentityError(
                f"the manifest was written by another version of ntkpipe: it differs in the fields {odd}"
            )
        return cls(**content)

    def require(self, wanted: GramIdentity, where: str) -> None:
        """Check that this identity, of the store at `where`, is the wanted one.

        Raises:
            IdentityError: if a field differs. The text names every such field, both values and the remedy.
        """
        mine, theirs = self.compared(), wanted.compared()
        differing = [name for name in mine if mine[name] != theirs[name]]
        if differing:
            lines = [
                f"  {name}: stored {mine[name]!r}, required {theirs[name]!r}; {_REMEDY[name]}" for name in differing
            ]
            raise IdentityError(
                f"the Gram store {where} has another identity:\n"
                + "\n".join(lines)
                + "\nOr leave store.name unset, so that the store is found or made by its identity."
            )
