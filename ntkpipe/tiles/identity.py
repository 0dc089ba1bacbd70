"""What makes two Gram stores the same store."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ntkpipe.errors import ConfigError, IdentityError
from ntkpipe.storage.checksum import digest

Symmetry = Literal["none", "even", "odd"]
SYMMETRIES: tuple[Symmetry, ...] = get_args(Symmetry)
FUNCTION = "function"
"""Version of the formulas of a kernel that is a user's function: `architecture` is the name that the user gave it."""
EMPIRICAL = "empirical 1"
"""Version of the formulas of a finite network's kernels: `architecture` is the digest of its layers and weights."""
EMPIRICAL_FULL = "empirical full 1"
"""Of one between all pairs of its outputs: a row for every output of every point, those of a point together."""
FEATURES = "features 1"
"""Version of the products of given features: `data` is the hash of their values, `architecture` what they are divided by."""

_ONE = {FUNCTION: ("gram",), FEATURES: ("gram",), EMPIRICAL_FULL: ("ntk",)}

_REMEDY = {
    "data": "use the data and preprocessing that it was made with",
    "architecture": "use the kernel that it was made with",
    "formula_version": "use the version of ntkpipe that it was made with",
    "dtype": "set kernel.dtype to the stored value",
    "stored_dtype": "set store.dtype to the stored value",
    "edge": "set grid.edge to the stored value",
    "n_train": "use the data that it was made with",
    "n_test": "use the data that it was made with",
    "symmetry": "set augment to what it was made with",
}


@dataclass(frozen=True)
class GramIdentity:
    """Everything that decides the values in a Gram store, and nothing that does not.

    Solver, ridge, time, subset size and versions of libraries are no part of it. Those of libraries are
    recorded in the receipt of every tile.

    Args:
        data: content hash of the prepared images, training and test.
        architecture: fingerprint of the kernel spec.
        formula_version: of the kernel formulas.
        dtype: that tiles are computed in, `float32` or `float64`.
        stored_dtype: that tiles are stored in, likewise.
        edge: rows per tile.
        n_train: images of the full training set; subsets are leading blocks of it.
        n_test: of the full test set; 0 if there is none.
        symmetry: `none`: the kernel itself; `even` or `odd`: k(x, y) plus or minus k(x, flipped y). `none` is left out of
            the key and the manifest: stores made before there were others keep theirs.
        spec: the kernel spec itself, for people who read the manifest; represented by `architecture` in comparisons.
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
        """What every tile holds: both kernels of a network, or the one of a function, of features, or of all pairs of outputs."""
        return _ONE.get(self.formula_version, ("nngp", "ntk"))

    @property
    def key(self) -> str:
        """16 hexadecimal digits; equal identities have equal keys."""
        return digest(self._stated())

    def compared(self) -> dict[str, Any]:
        """The fields that make the identity."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.compare}

    def to_dict(self) -> dict[str, Any]:
        """All fields that say something, JSON-ready if the spec is."""
        return {**self._stated(), "spec": self.spec}

    def _stated(self) -> dict[str, Any]:
        stated = self.compared()
        if self.symmetry == "none":
            del stated["symmetry"]
        return stated

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> GramIdentity:
        """The inverse of `to_dict`.

        Raises:
            IdentityError: if fields are missing or unknown: another version of ntkpipe wrote it.
        """
        names = {f.name for f in dataclasses.fields(cls)}
        if set(content) | {"symmetry"} != names:
            odd = ", ".join(sorted(names ^ (set(content) | {"symmetry"})))
            raise IdentityError(
                f"the manifest was written by another version of ntkpipe: it differs in the fields {odd}"
            )
        return cls(**content)

    def require(self, wanted: GramIdentity, where: str) -> None:
        """Check that the store at `where`, which has this identity, is the one that is wanted.

        Raises:
            IdentityError: naming every field that differs, both values and what to do.
        """
        mine, theirs = self.compared(), wanted.compared()
        differing = [name for name in mine if mine[name] != theirs[name]]
        if differing:
            lines = [f"  {name}: stored {mine[name]!r}, wanted {theirs[name]!r}; {_REMEDY[name]}" for name in differing]
            raise IdentityError(
                f"the Gram store {where} was made for something else:\n"
                + "\n".join(lines)
                + "\nOr leave store.name unset: the store is then found, or made, by its identity."
            )
