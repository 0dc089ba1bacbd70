"""Features that the user gave (`kernel=features`): found, checked once, and known again by their content."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ntkpipe.config import RunConfig
from ntkpipe.data.given_features import GivenFeatures, changed_features, check_features, open_features
from ntkpipe.data.given_labels import load_given_labels
from ntkpipe.data.labels import require_two_classes
from ntkpipe.data.source_records import read_source, write_source
from ntkpipe.data.stored_labels import GIVEN_PREFIX, GivenLabels, Labels, read_labels, write_labels
from ntkpipe.errors import DataError, NtkpipeError
from ntkpipe.gram.features import FeatureEvaluation, FeatureKernel, feature_cost
from ntkpipe.gram.function import Evaluates
from ntkpipe.gram.task import Output
from ntkpipe.kernels.dominance import dominance
from ntkpipe.planning.shapes import Shapes
from ntkpipe.sources.computed import ComputedSource
from ntkpipe.sources.precomputed import not_known
from ntkpipe.storage.store import ObjectStore
from ntkpipe.units import human_bytes


@dataclass(frozen=True)
class FeatureSource(ComputedSource):
    """Products of given features, called `gram`.

    Args:
        features: checked.
    """

    features: GivenFeatures

    @property
    def outputs(self) -> tuple[Output, ...]:
        """See `ComputedSource`."""
        return (Output(self.gram, (), FeatureKernel(self.features)),)

    def evaluation(self, dtype: str) -> Evaluates:
        """See `ComputedSource`."""
        return FeatureEvaluation(self.features, dtype)

    def dominance(self, trace: float, smallest: float) -> float:
        """See `KernelSource`."""
        return dominance((), trace, smallest)

    def describe(self) -> dict[str, object]:
        """See `KernelSource`."""
        given = self.features
        return {
            "features": given.where,
            "of each point": given.count,
            "scale": given.scale,
            "content": given.content,
            **super().describe(),
        }

    def find_changes(self) -> dict[str, list[str]]:
        """See `KernelSource`."""
        return {f"features {self.features.where}": changed_features(self.features)}


@dataclass(frozen=True)
class FoundFeatures:
    """Checked features and their labels."""

    features: GivenFeatures
    labels: GivenLabels


def features_of(config: RunConfig) -> GivenFeatures:
    """The files of a configuration, looked at but not read."""
    k = config.kernel
    assert k.train is not None  # checked by KernelConfig
    assert k.test is not None
    return open_features(k.train, k.test, k.scale)


def find_features(
    config: RunConfig, store: ObjectStore, source: str, tell: Callable[[str], None], *, reading: bool = False
) -> FoundFeatures:
    """The features and their labels, checked: all values are read once, unless an earlier run has read the same files.

    Args:
        config: of the run.
        store: where what was found is kept.
        source: key of the record that says so; it changes with the files.
        tell: receives lines for people.
        reading: write nothing.

    Raises:
        DataError: if the files are no features and labels that go together.
        StoreError: if nothing may be written, and nothing is known of these files.
    """
    given = features_of(config)
    known = _known(given, store, source)
    if known is not None:
        tell(f"features {given.where}, checked before: {known.features.content[:16]}")
        return known
    if reading:
        raise not_known(store, given.where)
    sizes = (given.train.shape[0], given.test.shape[0])
    labels = load_given_labels(config.data, *sizes)
    _used(config, sizes, labels)
    size = sum(a.shape[0] * a.shape[1] * (8 if a.dtype == "float64" else 4) for a in (given.train, given.test))
    tell(
        f"features {given.where} and {given.test.path}: reading {human_bytes(size)} once, to check and to know them again"
    )
    given = check_features(given)
    key = write_labels(labels, store, GIVEN_PREFIX)
    write_source(store, source, {"content": given.content, "labels": key})
    return FoundFeatures(given, GivenLabels(store.url, key, given.content, sizes))


def feature_shapes(config: RunConfig, found: FoundFeatures) -> Shapes:
    """Sizes of the kernel and of the leading block of it that the run uses.

    Raises:
        DataError: if the run asks for more than there is.
    """
    return _shapes(config, found.features, found.labels.labels())


def read_feature_shapes(config: RunConfig) -> tuple[GivenFeatures, Shapes]:
    """For a plan: headers and labels alone are read, and nothing is written."""
    given = features_of(config)
    labels = load_given_labels(config.data, given.train.shape[0], given.test.shape[0])
    return given, _shapes(config, given, labels)


def _shapes(config: RunConfig, given: GivenFeatures, labels: Labels) -> Shapes:
    n, p = given.train.shape[0], given.test.shape[0]
    train, test = _used(config, (n, p), labels)
    cost = feature_cost(given, 1, config.kernel.dtype)
    outputs = labels.y_train.shape[1]
    return Shapes(given.content, n, p, train, test, (0, 0, 0), outputs, prepared=True, cost=cost)


def _used(config: RunConfig, sizes: tuple[int, int], labels: Labels) -> tuple[int, int]:
    """Training and test points in use: leading rows of the files."""
    asked = (config.data.train_size, config.data.test_size)
    for name, wanted, there in zip(("train", "test"), asked, sizes, strict=True):
        if wanted is not None and wanted > there:
            raise DataError(f"data.{name}_size={wanted}, but kernel.{name} has {there} rows")
    train, test = (wanted or there for wanted, there in zip(asked, sizes, strict=True))
    if labels.labels_train is not None:
        require_two_classes(labels.labels_train[:train], labels.class_names, f"the first {train} training points")
    return train, test


def _known(given: GivenFeatures, store: ObjectStore, source: str) -> FoundFeatures | None:
    """What an earlier run found in the very same files, if all of it is still there."""
    try:
        record = read_source(store, source)
        read_labels(store, record["labels"])
        sizes = (given.train.shape[0], given.test.shape[0])
        labels = GivenLabels(store.url, record["labels"], record["content"], sizes)
        return FoundFeatures(replace(given, content=record["content"]), labels)
    except (NtkpipeError, KeyError, TypeError):
        return None  # no record, or one of what is gone or damaged: the files are read again
