"""Opens given features (`kernel=features`), checks them once, and recognises them by their content."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ntkpipe.config import RunConfig
from ntkpipe.data.given_features import GivenFeatures, changed_features, check_features, open_features
from ntkpipe.data.stored_labels import Labels
from ntkpipe.gram.features import FeatureEvaluation, FeatureKernel, feature_cost
from ntkpipe.gram.function import Evaluates
from ntkpipe.gram.task import Output
from ntkpipe.kernels.dominance import dominance
from ntkpipe.planning.shapes import Shapes
from ntkpipe.sources.computed import ComputedSource
from ntkpipe.sources.given_files import Checked, FileKind, find_files, read_labels_beside, shapes_of_files
from ntkpipe.storage.store import ObjectStore


@dataclass(frozen=True)
class FeatureSource(ComputedSource):
    """A `KernelSource` of products of given features, called `gram`.

    Args:
        features: that were checked.
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


def _opened(config: RunConfig) -> GivenFeatures:
    """Open the files of a configuration without reading them."""
    k = config.kernel
    assert k.train is not None  # checked by KernelConfig
    assert k.test is not None
    return open_features(k.train, k.test, k.scale)


_FEATURES = FileKind[GivenFeatures](
    "features",
    check_features,
    keep=lambda features, store: {},
    restore=lambda features, record, store: replace(features, content=record["content"]),
)


def find_features(
    config: RunConfig, store: ObjectStore, source: str, tell: Callable[[str], None], *, reading: bool = False
) -> Checked[GivenFeatures]:
    """Check the features of a configuration; see `find_files`."""
    return find_files(_FEATURES, _opened(config), config, store, source, tell, reading=reading)


def feature_shapes(config: RunConfig, features: GivenFeatures, labels: Labels) -> Shapes:
    """See `shapes_of_files`."""
    cost = feature_cost(features, 1, config.kernel.dtype)
    return replace(shapes_of_files(config, features, labels), prepared=True, cost=cost)


def read_feature_shapes(config: RunConfig) -> tuple[GivenFeatures, Shapes]:
    """The features and their sizes, for a plan. Reads only headers and labels, and writes nothing."""
    features = _opened(config)
    return features, feature_shapes(config, features, read_labels_beside(config, features))
