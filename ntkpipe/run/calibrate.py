"""`ntkpipe calibrate`: measures this machine in about a minute."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import math
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from ntkpipe.config import DataConfig, GridConfig, PredictConfig, RunConfig, SolverConfig, StoreConfig
from ntkpipe.errors import ReportError
from ntkpipe.events.event import Event
from ntkpipe.gram.from_config import pair_cost
from ntkpipe.kernels.spec import fingerprint
from ntkpipe.linalg.operator import rectangular_operator
from ntkpipe.planning.measured import RATES, Calibration, calibrated, calibration_key, find_calibration, pair_key
from ntkpipe.planning.model import vectors
from ntkpipe.planning.probes import measure_disk, measure_pairs
from ntkpipe.planning.rates import measure_paths, measure_rates
from ntkpipe.planning.sample_rows import sample_rows
from ntkpipe.planning.shapes import Shapes, spec_for
from ntkpipe.planning.surroundings import worker_threads
from ntkpipe.planning.tiles import choose_edge
from ntkpipe.run.context import RunContext
from ntkpipe.run.prepare import prepare
from ntkpipe.run.run_dir import RunDir
from ntkpipe.run.stages import RunAtWork
from ntkpipe.storage.clock import now
from ntkpipe.storage.store import ObjectStore
from ntkpipe.tasks.executor import Executor
from ntkpipe.tasks.graph import Task

_PAIR_SECONDS = 1.0
_TIMES = 5


@dataclasses.dataclass(frozen=True)
class Effort:
    """The amount of measuring; tests measure little.

    Args:
        size: number of rows of matrices.
        seconds: time for the measurement of each rate.
        objects: number of objects of a tile's size to write and read.
        tasks: number of empty tasks.
        images: largest number of training images in the small run that measures fixed costs.
        tests: largest number of test images in that run.
    """

    size: int = 1024
    seconds: float = 0.4
    objects: int = 8
    tasks: int = 100
    images: int = 120
    tests: int = 1000


class ProcessorSeconds:
    """Context manager that counts the processor seconds of this process and of all processes that it starts.

    It also counts processes that end within the block.
    """

    def __init__(self, period: float = 0.2) -> None:
        self._period, self._known = period, {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._before = 0.0

    @property
    def seconds(self) -> float:
        """Processor seconds since the start of the block."""
        self._look()
        return sum(self._known.values()) - self._before

    def _look(self) -> None:
        own = psutil.Process()
        for process in [own, *own.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                self._known[process.pid, process.create_time()] = times.user + times.system

    def _watch(self) -> None:
        while not self._stop.wait(self._period):
            self._look()

    def __enter__(self) -> ProcessorSeconds:
        self._look()
        self._before = sum(self._known.values())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._look()
        self._stop.set()
        self._thread.join()


def calibrate(
    config: RunConfig,
    shapes: Shapes,
    store: ObjectStore,
    executor: Callable[[], Executor],
    tell: Callable[[str], None],
    effort: Effort | None = None,
) -> Calibration:
    """Measure this machine, store the record and return it; earlier measurements of networks are kept.

    Args:
        config: configuration whose kernel, workers and store are measured.
        shapes: shapes of the data.
        store: the store, which is measured and keeps the record.
        executor: starts the executor when it is first called.
        tell: receives lines for the user.
        effort: amount of measuring; None takes the default.

    Raises:
        ResourceError: if a process that measures fails.
    """
    effort = effort or Effort()
    earlier = find_calibration(config, store)
    # Measured before Ray's processes start, and without JAX in this process.
    tell("measuring dense algebra in all workers at once")
    rates, busy = measure_rates(
        config.cluster.worker_count(),
        worker_threads(config),
        vectors(config, shapes.outputs),
        size=effort.size,
        seconds=effort.seconds,
    )
    tell("measuring pairs of points in float32 and float64")
    pairs = _pairs(config, shapes)
    tell("the store")
    disk, paths = measure_disk(store), measure_paths(store, effort.objects)
    tell("measuring images and a small run from end to end")
    images = _image_rate(config)
    fixed, cpu, latency, task = _small_run(config, shapes, executor, effort, pairs, busy)
    figures = {
        **{name: rates[key] for key, name in RATES.items()},
        "orthogonalise": rates["orthogonalise"],
        **paths,
        "store_write": disk.write,
        "store_read": disk.read,
        "images": images,
        "latency": latency,
        "task": task,
        # Waiting for other users' processes does not count: no work takes longer than its processor seconds.
        **{name: min(seconds, cpu[name]) for name, seconds in fixed.items()},
    }
    made = Calibration(calibrated(config), now(), round(busy, 3), figures, cpu, {})
    made = made.with_pairs({**(earlier.pairs if earlier else {}), **pairs})
    store.put(calibration_key(config), made.to_bytes(), overwrite=True)
    return made


def _pairs(config: RunConfig, shapes: Shapes) -> dict[str, float]:
    """Return the seconds per pair in both precisions, measured in as many processes at once as a run uses."""
    spec = spec_for(config.kernel, shapes)
    cost = pair_cost(spec, shapes.image)
    # Networks that flatten their images are timed by whole tiles, because they are matrix products.
    edge = (config.grid.edge or choose_edge(shapes.n_train, cost)) if cost.input_entries == 1 else None
    threads, workers = worker_threads(config), config.cluster.worker_count()
    found = {}
    with ThreadPoolExecutor(workers * threads) as pool:
        for dtype in ("float32", "float64"):
            runs = [
                pool.submit(measure_pairs, spec, shapes.image, dtype, threads=1, edge=edge)
                for _ in range(workers * threads)
            ]
            key = pair_key(fingerprint(spec), shapes.image, dtype)
            found[key] = statistics.mean(run.result().seconds_per_pair for run in runs) / threads
    return found


def _image_rate(config: RunConfig) -> float:
    """Return how many numbers of the data set per second are prepared from raw files, including checks and plans."""
    with _scratch() as folder:
        start = time.process_time()
        there = dataclasses.replace(config, store=StoreConfig(url=str(folder)), run_dir=str(folder / "run"))
        data = prepare(there, lambda line: None, measure=False).data
        count = math.prod(data.shape("train")) + math.prod(data.shape("test"))
        return count / (time.process_time() - start)


def _small_run(
    config: RunConfig,
    shapes: Shapes,
    executor: Callable[[], Executor],
    effort: Effort,
    pairs: Mapping[str, float],
    busy: float,
) -> tuple[dict[str, float], dict[str, float], float, float]:
    """Return the fixed costs in seconds and in processor seconds, a pool's latency and the seconds of an empty task."""
    fixed, cpu = {}, {}
    # Training points whose pairs take a few seconds. The fixed costs do not depend on them, but the report depends on
    # test images.
    pair, careful = pairs.values()
    n = int(np.clip((_PAIR_SECONDS / pair) ** 0.5, 16, effort.images))
    tests = int(np.clip(_PAIR_SECONDS / pair / n, 8, min(shapes.used_test, effort.tests)))
    with _scratch() as folder:
        small = dataclasses.replace(
            config,
            data=DataConfig(kind="synthetic", n_train=n, n_test=max(8, tests), shape=tuple(shapes.image)),
            grid=GridConfig(edge=max(8, n // 4), pairs_per_step=config.grid.pairs_per_step),
            store=StoreConfig(url=str(folder / "store")),
            solver=SolverConfig(kind="krylov"),
            # The first kernel compiles the programs that both kernels need.
            predict=dataclasses.replace(PredictConfig(), times=config.predict.times, ridges=(1e-3,)),
            kernel=dataclasses.replace(config.kernel, readout_depths=()),
            run_dir=str(folder / "run"),
        )
        # Programs compiled by an earlier run would count as free, and programs of other sizes would be missing.
        with ProcessorSeconds() as clock, compiling_anew(folder):

            def timed(name: str, work: Callable[[], Any]) -> Any:
                began, used = time.perf_counter(), clock.seconds
                made = work()
                fixed[name], cpu[name] = time.perf_counter() - began, clock.seconds - used
                return made

            at_work = timed("start", executor)
            ended: list[float] = []

            def listen(event: Event) -> None:
                if ": done" in event.text:
                    ended.append(time.process_time())

            work = RunAtWork(RunDir.create(small), lambda: at_work, listen)
            with work.run.held():
                work.context()
                timed("first_tile", work.gram)
                timed("solve", work.solve)
                work.predict()
                latency = timed("pool", lambda: _open_pool(work.context(), at_work))
                work.run.forget("predict")
                timed("again", work.predict)
                try:
                    timed("finish", work.report)
                except ReportError as error:
                    raise ReportError(
                        f"the report of a small run could not be drawn on this machine ({error.__cause__})"
                    ) from error
                solved = (work.run.receipt("solve") or {})["kernels"]
            task = min(_seconds_of_tasks(at_work, effort.tasks) for _ in range(_TIMES))
    plan, at_once = work.context().opened.tiles, config.cluster.worker_count()
    evaluated = {"first_tile": plan.pairs * pair, "solve": sample_rows(small, plan, n) * n * careful}
    for name, seconds in evaluated.items():
        fixed[name] = max(0.0, fixed[name] - seconds / at_once * busy)
        cpu[name] = max(0.0, cpu[name] - seconds)
    first, second = (solved[name] for name in small.predict.kernels)
    for one in (fixed, cpu):
        one["finish"] += max(0.0, one.pop("again") - len(solved) * one["pool"])
    # The driver's processor seconds between the ends of both kernels: the stopping rule, checkpoints, calls of workers.
    fixed["step"] = cpu["step"] = (ended[1] - ended[0]) / second["steps"]
    for one in (fixed, cpu):
        one["first_solve"] = max(
            0.0, one.pop("solve") * (1 - 2 * second["seconds"] / (first["seconds"] + second["seconds"]))
        )
    return fixed, cpu, latency, task


def _open_pool(context: RunContext, executor: Executor) -> float:
    """Start workers that hold tiles, and return the shortest time of a few calls to all of them, in seconds."""
    with rectangular_operator(context.kernels.test("nngp").matrix, executor) as operator:
        operator.kept()
        return min(_seconds(operator.kept) for _ in range(_TIMES))


def _seconds_of_tasks(executor: Executor, count: int) -> float:
    """Return the seconds per task of many empty tasks."""
    tasks = (Task(("empty", k), os.getpid, ()) for k in range(count))
    return _seconds(lambda: list(executor.run(tasks))) / count


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@contextlib.contextmanager
def compiling_anew(folder: Path) -> Iterator[None]:
    """Context manager in which this process and its workers use a separate folder of compiled programs."""
    name = "JAX_COMPILATION_CACHE_DIR"
    before = os.environ.get(name)
    os.environ[name] = str(folder / "compiled")
    jax = sys.modules.get("jax")  # a run without workers has read the variable at import
    own = None if jax is None else jax.config.jax_compilation_cache_dir
    _keep_programs_in(str(folder / "compiled"))
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
        _keep_programs_in(own)


def _keep_programs_in(folder: str | None) -> None:
    if (jax := sys.modules.get("jax")) is not None:
        jax.config.update("jax_compilation_cache_dir", folder)
        # JAX checks for a folder once, at the first compilation.
        importlib.import_module("jax.experimental.compilation_cache.compilation_cache").reset_cache()


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ntkpipe-calibrate-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
