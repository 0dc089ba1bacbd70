"""The Gram stage alone, as the pipeline runs it, on a separate store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ntkpipe.gram.from_config import pair_cost
from ntkpipe.gram.stage import GramReport, compute_gram
from ntkpipe.gram.task import GramJob, ImageSource, Output, provenance
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.spec import FORMULA_VERSION
from ntkpipe.planning.tiles import plan_gram
from ntkpipe.storage.store import open_store
from ntkpipe.tasks.executor import Executor
from ntkpipe.tiles.identity import GramIdentity
from ntkpipe.tiles.store import GramStore


def gram_round(
    executor: Executor,
    images: ImageSource,
    spec: Sequence[dict[str, Any]],
    shape: Sequence[int],
    n: int,
    edge: int,
    fingerprint: str,
    folder: Path,
) -> GramReport:
    """Compute all tiles of `n` images in float32 into a fresh store in `folder`, and return the stage's report."""
    identity = GramIdentity(
        data=fingerprint,
        architecture=Architecture.from_spec(spec).fingerprint,
        formula_version=str(FORMULA_VERSION),
        dtype="float32",
        stored_dtype="float32",
        edge=edge,
        n_train=n,
        n_test=0,
        spec=spec,
    )
    gram = GramStore.create_or_open(open_store(str(folder)), identity)
    provenance()
    plan = plan_gram(n_train=n, n_test=0, spec=spec, cost=pair_cost(spec, shape), edge=edge, workers=executor.workers)
    report = compute_gram(executor, GramJob((Output(gram, tuple(spec)),), images), plan)
    assert report.computed == plan.tiles
    return report
