"""`ntkpipe sample`: samples the weight posterior of a finite network on a run's data.

The samples are drawn in pieces and compared with the infinite posterior.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ntkpipe.config import RunConfig
from ntkpipe.data.dataset import PreparedDataset, load_dataset
from ntkpipe.errors import ConfigError
from ntkpipe.finite.initialisers import at_width
from ntkpipe.finite.posterior import Chain, Evaluated, WeightPosterior, WeightSamples
from ntkpipe.finite.sampling import Done, Piece, SampleSettings, draw, work
from ntkpipe.gram.from_config import check_kernel, kernel_spec
from ntkpipe.gram.worker import compute_diagonal, compute_tile
from ntkpipe.kernels.spec import canonical_json, canonical_spec
from ntkpipe.planning.choosing import choose
from ntkpipe.sources.shapes import shapes_of
from ntkpipe.storage.checksum import content_hash, digest
from ntkpipe.storage.plain import json_ready
from ntkpipe.storage.replace import replace_text, replacing
from ntkpipe.tasks.executor import Executor, values_of
from ntkpipe.tasks.graph import Task

# Limit of points times outputs, as a share of the width. Above it, a few samples carry all the weight, because the log
# weight is a sum over outputs.
_LIMIT = 0.25
# Number of effective samples below which the divergence is underestimated. The estimate is at most the logarithm of the
# number of samples.
_FEW = 20.0
# R-hat above which chains have not converged.
_MET = 1.05


@dataclass(frozen=True, eq=False)
class InfinitePosterior:
    """The posterior of the Gaussian process with the infinite network's NNGP.

    Args:
        mean: mean at the test points, `(p, c)`.
        variance: variance at the test points, `(p,)`.
    """

    mean: np.ndarray
    variance: np.ndarray


@dataclass(frozen=True, eq=False)
class Sampled:
    """The result of `ntkpipe sample`.

    Args:
        folder: folder with samples, numbers and figure.
        samples: samples of the posterior.
        infinite: the infinite posterior; None if the layers have no infinite network.
        record: the numbers, JSON-ready.
        points: targets `(p, c)` of the test points, and their labels `(p,)` or None.
    """

    folder: Path
    samples: WeightSamples
    infinite: InfinitePosterior | None
    record: dict[str, Any]
    points: tuple[np.ndarray, np.ndarray | None]


def sample_weights(
    config: RunConfig,
    width: int | None,
    noise: float,
    settings: SampleSettings,
    executor: Callable[[RunConfig], Executor],
    tell: Callable[[str], None],
) -> Sampled:
    """Draw samples for a run's network and data; finished pieces are reused.

    Args:
        config: configuration of data and kernel.
        width: width of the narrowest hidden layer, to which all layers are scaled; None takes the layers' widths.
        noise: variance of the noise on the targets.
        settings: settings of the samples.
        executor: makes the executor for the pieces from the configuration without `auto`.
        tell: receives lines for the user.

    Raises:
        ConfigError, DataError: before any sample is drawn.
    """
    check_kernel(config.kernel)
    data = load_dataset(config.data, dtype="float64")
    spec = canonical_spec(kernel_spec(config.kernel, data.x_train.shape[1:]))
    spec = spec if width is None else at_width(spec, width)
    arrays = {
        "x": data.x_train[: data.n_train],
        "y": data.y_train[: data.n_train],
        "x_test": data.x_test[: data.n_test],
    }
    posterior = WeightPosterior(spec, arrays["x"], arrays["y"], arrays["x_test"], noise)
    stated = {"spec": spec, "noise": noise, "settings": dataclasses.asdict(settings), "n": len(arrays["x"])}
    stated |= {"data": data.fingerprint, "p": len(arrays["x_test"]), "labels": content_hash(arrays["y"].tobytes())}
    folder = Path(config.run_dir).expanduser() / "sample" / digest(stated)
    folder.mkdir(parents=True, exist_ok=True)
    _write_problem(folder, spec, noise, arrays)
    chosen, lines = choose(config, shapes_of(data))
    for line in lines:
        tell(line)
    tell(
        f"sample   {posterior.parameters:,} hidden weights, {posterior.features:,} inputs of the readout, {len(arrays['x']):,} training "
        f"points: {folder}"
    )

    def run(pieces: Sequence[Piece]) -> list[Done]:
        return _done(pieces, folder, lambda: executor(chosen), tell)

    samples = draw(posterior, settings, run)
    infinite = infinite_posterior(spec, arrays, noise)
    labels = None if data.labels_test is None else data.labels_test[: data.n_test]
    targets = _in_units(data, data.y_test[: data.n_test])
    record = _record(posterior, settings, samples, infinite, targets, labels, _narrowest(spec))
    points = (targets, labels)
    _write_samples(folder, samples, infinite, targets)
    replace_text(folder / "sample.json", json.dumps(json_ready(record), indent=1, allow_nan=False) + "\n")
    return Sampled(folder, samples, infinite, record, points)


def infinite_posterior(
    spec: list[dict[str, Any]], arrays: dict[str, np.ndarray], noise: float
) -> InfinitePosterior | None:
    """Return the posterior for the same data with the infinite network's NNGP, or None if the layers have none."""
    x, z = arrays["x"], arrays["x_test"]
    try:
        train, cross = (
            compute_tile(spec, a, b, diagonal=b is None, dtype="float64", out_dtype="float64")["nngp"]
            for a, b in ((x, None), (z, x))
        )
        own = compute_diagonal(spec, z, dtype="float64")["nngp"]
    except ConfigError:
        return None
    weights = np.linalg.solve(train + noise * np.eye(len(x)), cross.T).T
    return InfinitePosterior(weights @ arrays["y"], np.maximum(own - np.einsum("ij,ij->i", weights, cross), 0.0))


def sampling_task(folder: str, piece: Piece, step: float | None) -> str:
    """Compute a piece and store it; the state of a chain is in the folder.

    Returns:
        The piece's name.
    """
    if step is not None:
        piece = dataclasses.replace(piece, chain=Chain(np.load(_start(Path(folder), piece), allow_pickle=False), step))
    done = work(_problem(folder), piece)
    arrays = {name: np.array([getattr(one, name) for one in done.kept]) for name in Evaluated._fields}
    if done.chain is not None:
        arrays |= {"state": done.chain.state, "step": np.array(done.chain.step)}
    arrays["accepted"] = np.array(done.accepted)
    arrays["seal"] = np.array(_seal(arrays))
    with replacing(_file(Path(folder), piece)) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    return piece.name


def _done(
    pieces: Sequence[Piece], folder: Path, executor: Callable[[], Executor], tell: Callable[[str], None]
) -> list[Done]:
    found = {piece.name: _read(folder, piece) for piece in pieces}
    left = [piece for piece in pieces if found[piece.name] is None]

    def tasks() -> Any:
        for piece in left:
            if piece.chain is not None:
                with replacing(_start(folder, piece)) as partial, partial.open("wb") as file:
                    np.save(file, piece.chain.state, allow_pickle=False)
            step = None if piece.chain is None else piece.chain.step
            yield Task(piece.name, sampling_task, (str(folder), dataclasses.replace(piece, chain=None), step))

    by_name = {piece.name: piece for piece in pieces}
    if left:
        for count, (name, _) in enumerate(values_of(executor(), tasks()), 1):
            found[name] = _read(folder, by_name[name])
            _start(folder, by_name[name]).unlink(missing_ok=True)
            tell(f"sample   {name}: {count} of {len(left)} pieces, {len(pieces) - len(left)} reused")
    made = [found[piece.name] for piece in pieces]
    assert all(done is not None for done in made)
    return [done for done in made if done is not None]


def _read(folder: Path, piece: Piece) -> Done | None:
    """Return a stored piece, or None if it is missing or damaged and must be recomputed."""
    try:
        with np.load(_file(folder, piece), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        if str(arrays.pop("seal")) != _seal(arrays):
            return None
        columns = zip(*(arrays[name] for name in Evaluated._fields), strict=True)
        kept = [Evaluated(float(weight), mean, variance, drawn) for weight, mean, variance, drawn in columns]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    chain = Chain(arrays["state"], float(arrays["step"])) if "state" in arrays else None
    return Done(kept, chain, float(arrays["accepted"]))


def _seal(arrays: dict[str, np.ndarray]) -> str:
    return digest({name: content_hash(np.ascontiguousarray(a).tobytes()) for name, a in arrays.items()})


def _file(folder: Path, piece: Piece) -> Path:
    return folder / f"{piece.name}.npz"


def _start(folder: Path, piece: Piece) -> Path:
    return folder / f"{piece.name}.start.npy"


def _write_problem(folder: Path, spec: list[dict[str, Any]], noise: float, arrays: dict[str, np.ndarray]) -> None:
    with replacing(folder / "problem.npz") as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, spec=np.array(canonical_json(spec)), noise=np.array(noise), **arrays)


@functools.lru_cache(maxsize=2)
def _problem(folder: str) -> WeightPosterior:
    with np.load(Path(folder) / "problem.npz", allow_pickle=False) as archive:
        spec = json.loads(str(archive["spec"]))
        return WeightPosterior(spec, archive["x"], archive["y"], archive["x_test"], float(archive["noise"]))


def _write_samples(
    folder: Path, samples: WeightSamples, infinite: InfinitePosterior | None, targets: np.ndarray
) -> None:
    arrays = {
        "weights": samples.weights,
        "log_weights": samples.log_weights,
        "mean": samples.mean,
        "variance": samples.variance,
        "draws": samples.draws,
        "target": targets,
    }
    if infinite is not None:
        arrays |= {"infinite_mean": infinite.mean, "infinite_variance": infinite.variance}
    with replacing(folder / "samples.npz") as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _in_units(data: PreparedDataset, targets: np.ndarray) -> np.ndarray:
    """Return test targets in the units of the training targets; a data set keeps them in the units of the data."""
    return targets if data.scale is None else (targets - data.mean) / data.scale


def _narrowest(spec: list[dict[str, Any]]) -> int | None:
    """Return the width of the narrowest hidden layer, or None without hidden layers."""
    hidden = [layer["features"] for layer in spec[:-1] if "features" in layer]
    return min(hidden) if hidden else None


def _record(
    posterior: WeightPosterior,
    settings: SampleSettings,
    samples: WeightSamples,
    infinite: InfinitePosterior | None,
    targets: np.ndarray,
    labels: np.ndarray | None,
    width: int | None,
) -> dict[str, Any]:
    n, count = len(posterior.x), len(samples.log_weights)
    made: dict[str, Any] = {
        "method": samples.method,
        "width": width,
        "hidden_weights": posterior.parameters,
        "training_points": n,
        "test_points": len(targets),
        "noise": posterior.noise,
        "samples": count,
        "effective_samples": samples.effective_size,
        "effective_share": samples.effective_size / count,
        "outputs": targets.shape[1],
        "kl_to_prior": samples.divergence,
        "kl_is_lower_bound": samples.divergence is not None and samples.effective_size < _FEW,
        "r_hat": samples.r_hat,
        "acceptance": list(samples.acceptance),
        "largest_standard_error": float(samples.mean_error.max()),
        "seed": settings.seed,
        "finite": _scores(samples.mean, samples.variance, targets, labels, posterior.noise),
    }
    if infinite is not None:
        variance = np.broadcast_to(infinite.variance[:, None], infinite.mean.shape)
        made["infinite"] = _scores(infinite.mean, variance, targets, labels, posterior.noise)
        deviation = np.sqrt(np.maximum(variance, np.finfo(np.float64).tiny))
        made["apart"] = {
            "means_rms": float(np.sqrt(np.mean((samples.mean - infinite.mean) ** 2))),
            "means_in_deviations": float(np.sqrt(np.mean(((samples.mean - infinite.mean) / deviation) ** 2))),
            "deviations_ratio": float(np.median(np.sqrt(samples.variance) / deviation)),
        }
    made["notes"] = _notes(made)
    return made


def _scores(
    mean: np.ndarray, variance: np.ndarray, targets: np.ndarray, labels: np.ndarray | None, noise: float
) -> dict[str, float | None]:
    if not np.isfinite(targets).all():
        return {"mse": None, "nll": None, **({} if labels is None else {"accuracy": None})}
    spread = variance + noise
    nll = 0.5 * np.mean((mean - targets) ** 2 / spread + np.log(2 * math.pi * spread))
    made: dict[str, float | None] = {"mse": float(np.mean((mean - targets) ** 2)), "nll": float(nll)}
    return made if labels is None else {**made, "accuracy": float(np.mean(mean.argmax(axis=1) == labels))}


def _notes(record: dict[str, Any]) -> list[str]:
    """Return remarks on the reliability of the samples, with remedies."""
    n, width, notes = record["training_points"], record["width"], []
    if width is not None:
        c = record["outputs"]
        limit, of_outputs = int(_LIMIT * width / c), f" / {c} outputs" if c > 1 else ""
        notes.append(
            f"importance weights are reliable up to about n = width / 4{of_outputs} = {limit:,}; here n = {n:,}"
        )
    if record["method"] == "importance" and record["effective_share"] < 0.1:
        notes.append(
            f"only {record['effective_samples']:.1f} of {record['samples']:,} samples are effective: use "
            "sample.method=pcn, a wider network (finite.width), more noise or fewer points"
        )
    if record["r_hat"] is not None and not record["r_hat"] < _MET:
        notes.append(
            f"the chains have not converged (R-hat {record['r_hat']:.2f}, should be below {_MET}): raise "
            "sample.warmup, sample.count or sample.thin"
        )
    return notes
