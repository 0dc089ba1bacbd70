"""Kernels and products on a GPU: values, and rates compared with the largest rates of the card.

Usage: `python benchmarks/gpu.py [--sections ceilings,values,flat,spatial,products] [--reference DIR] [--trace DIR]`. The
script needs only JAX, NumPy and SciPy, and an accelerator that JAX uses by default. It prints tables in Markdown.

ceilings   largest rates of the card, measured: copies, matrix products in full float32 and float64, register arithmetic
values     float32 and float64 on the card against float64 on the CPU; with `--reference`, against stored peer values
flat       tiles of a fully connected network: arithmetic only, and with the transfers between host and card
spatial    tiles of networks on images, by the number of pairs that are evaluated together
products   passes over tiles that are kept on the card, in both precisions
memory     tiles that do not fit (with XLA_PYTHON_CLIENT_MEM_FRACTION=0.02); name this section, and run it alone

Times are medians of `--rounds` calls after one call that compiles. A call ends when its results are available.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from covariance_bytes import bytes_moved

from ntkpipe.gram.out_of_memory import retry_smaller_on_oom
from ntkpipe.kernels import zoo
from ntkpipe.kernels.accelerator import precision_context
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.cost import kernel_cost
from ntkpipe.linalg.device_products import DeviceProducts

_CIFAR, _SMALL = (32, 32, 3), (8, 8, 3)
_HIGHEST = jax.lax.Precision.HIGHEST

# Name: layers, image, rows and columns of the tile that is timed, pairs that are tried together.
SPATIAL: dict[str, tuple[list[dict[str, Any]], tuple[int, int, int], tuple[int, int], tuple[int, ...]]] = {
    "myrtle10": (zoo.myrtle(10, _CIFAR), _CIFAR, (16, 128), (4, 16, 64, 128)),
    "cnn_gap": (zoo.cnn_gap(10), _CIFAR, (8, 64), (4, 16)),
    "cnn_vec": (zoo.cnn_vec(10), _CIFAR, (128, 4096), (4096,)),
    "resnet 8x8": (zoo.resnet(3), _SMALL, (64, 1024), (1024,)),
    "attention 8x8": (zoo.attention(1), _SMALL, (32, 512), (512,)),
}

VALUES = {
    "fcn": (zoo.fcn(3), _CIFAR),
    "fcn erf, depth 10": (zoo.fcn(10, activation="erf"), _CIFAR),
    "myrtle10": (zoo.myrtle(10, _CIFAR), _CIFAR),
    "cnn_gap": (zoo.cnn_gap(4), _CIFAR),
    "cnn_vec": (zoo.cnn_vec(10), _CIFAR),
    "resnet": (zoo.resnet(3), _SMALL),
    "attention": (zoo.attention(1), _SMALL),
}


class Card:
    """The measured rates of the card.

    Args:
        rounds: number of calls of each measurement.
    """

    def __init__(self, rounds: int) -> None:
        self.rounds, self.rates = rounds, dict[str, float]()

    def seconds(self, run: Callable[[], Any], *, rounds: int | None = None) -> tuple[float, float]:
        """Return the median seconds of a compiled call, and the seconds of the first call."""
        began = time.perf_counter()
        jax.block_until_ready(run())
        first = time.perf_counter() - began
        found = []
        for _ in range(rounds or self.rounds):
            began = time.perf_counter()
            jax.block_until_ready(run())
            found.append(time.perf_counter() - began)
        return statistics.median(found), first


def peak() -> float:
    """Return the peak memory on the card so far, in GiB."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", 0) / 2**30


def images(shape: tuple[int, ...], count: int, seed: int, dtype: str = "float32") -> np.ndarray:
    """Return correlated random images `(count, *shape)`."""
    common = np.random.default_rng(99).standard_normal((1, *shape))
    return (common + np.random.default_rng(seed).standard_normal((count, *shape))).astype(dtype)


def ceilings(card: Card, _: argparse.Namespace) -> None:
    """Print and keep the card's largest rates."""
    rows = []
    big = jnp.ones((1 << 30,), jnp.float32)
    taken, _first = card.seconds(lambda big=big: big + 1.0)
    card.rates["copy"] = 2 * big.nbytes / taken
    rows.append(("copy, read and written", f"{card.rates['copy'] / 1e12:.2f} TB/s"))
    del big
    for dtype in ("float32", "float64"):
        with jax.enable_x64(True):
            a = jax.random.normal(jax.random.key(0), (8192, 8192), dtype)
            multiply = jax.jit(lambda a, b: jnp.matmul(a, b, precision=_HIGHEST))
            taken, _first = card.seconds(lambda a=a, multiply=multiply: multiply(a, a))
            card.rates[f"matrix {dtype}"] = 2 * 8192**3 / taken
            rows.append((f"8192^3 matrix product, {dtype}", f"{card.rates[f'matrix {dtype}'] / 1e12:.1f} TF/s"))

            def polynomial(x: Any) -> Any:
                y = x
                for _ in range(256):
                    y = y * x + 0.01
                return y

            x = jnp.linspace(0, 1, 1 << 25, dtype=dtype)
            run = jax.jit(polynomial)
            taken, _first = card.seconds(lambda run=run, x=x: run(x))
            card.rates[f"elementwise {dtype}"] = 512 * x.size / taken
            rows.append((f"polynomial in registers, {dtype}", f"{card.rates[f'elementwise {dtype}'] / 1e12:.1f} TF/s"))
            del a, x
    host = np.ones(1 << 28, np.float32)
    taken, _first = card.seconds(lambda: jax.device_put(host))
    card.rates["to card"] = host.nbytes / taken
    make = jax.jit(lambda s: jnp.full((1 << 28,), s))
    found = []
    for k in range(3):
        array = jax.block_until_ready(make(float(k)))
        began = time.perf_counter()
        np.asarray(array)
        found.append(time.perf_counter() - began)
    card.rates["from card"] = host.nbytes / min(found)
    rows += [(f"host memory {way}", f"{card.rates[way] / 1e9:.1f} GB/s") for way in ("to card", "from card")]
    print("| ceiling | measured |\n|---|---|")
    for name, value in rows:
        print(f"| {name} | {value} |")


def values(card: Card, options: argparse.Namespace) -> None:
    """Compare values with the CPU's and with a peer's."""
    print("| network | float32: NNGP, NTK | float64: NNGP, NTK |\n|---|---|---|")
    for name, (spec, shape) in mine(list(VALUES.items()), options.part):
        architecture = Architecture.from_spec(spec)
        x1, x2 = images(shape, 6, 1, "float64"), images(shape, 5, 2, "float64")
        with jax.default_device(jax.devices("cpu")[0]):
            exact = [architecture(x1, x2), architecture(x1)]
        cells = []
        for dtype in ("float32", "float64"):
            a, b = x1.astype(dtype), x2.astype(dtype)
            made = [architecture(a, b), architecture(a)]
            errors = [
                max(
                    float(np.abs(np.asarray(m[k], np.float64) - e[k]).max() / np.abs(e[k]).max())
                    for m, e in zip(made, exact, strict=True)
                )
                for k in range(2)
            ]
            cells.append(", ".join(f"{error:.1e}" for error in errors))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    if options.reference:
        print_reference(options.reference, options.part)


def mine(items: list[Any], part: tuple[int, int]) -> list[Any]:
    """Return this process's share of a list; processes share the work because compilation takes most of the time."""
    return items[part[0] :: part[1]]


def print_reference(folder: Path, part: tuple[int, int]) -> None:
    """Print the deviation of every stored case in float64 from the peer, relative to the peer's rounding."""
    described = json.loads((folder / "public.json").read_text())
    cases = mine(described["cases"], part)
    worst: tuple[float, str] = (0.0, "")
    with np.load(folder / "public.npz", allow_pickle=False) as arrays:
        for case in cases:
            inputs = described["inputs"][case["inputs"]]
            train, test = arrays[inputs["train"]], arrays[inputs["test"]]
            architecture = Architecture.from_spec(case["arch"])
            padded = np.concatenate([test, train])[: len(train)]
            for block, made in (("train_train", architecture(train)), ("test_train", architecture(padded, train))):
                for kernel in ("nngp", "ntk"):
                    expected = arrays[case["expected"][f"{kernel}_{block}"]]
                    error = (
                        np.abs(np.asarray(getattr(made, kernel))[: len(expected)] - expected) / np.abs(expected).max()
                    )
                    if block == "train_train":  # there the peer rounds
                        np.fill_diagonal(error, 0)
                    worst = max(worst, (float(error.max() / case["rtol"]["default"]), case["name"]))
    print(f"\n{len(cases)} cases of a peer, float64: largest difference {worst[0]:.2g} of the tolerance ({worst[1]})")


def flat(card: Card, _: argparse.Namespace) -> None:
    """Measure tiles of a fully connected network."""
    print("| edge | dtype | on the card | TF/s | of its products' rate | with both ways | pairs/s | compiled in |")
    print("|---|---|---|---|---|---|---|---|")
    architecture = Architecture.from_spec(zoo.fcn(3))
    for dtype in ("float32", "float64"):
        for edge in (2048, 8192):
            x1, x2 = images(_CIFAR, edge, 1, dtype), images(_CIFAR, edge, 2, dtype)
            with precision_context(dtype):
                d1, d2 = jnp.asarray(x1.reshape(edge, -1)), jnp.asarray(x2.reshape(edge, -1))
                inside, first = card.seconds(lambda a=d1, b=d2: architecture.on_device(a, b))
                rows, columns = architecture.prepare(x1), architecture.prepare(x2)
                whole, _first = card.seconds(lambda r=rows, c=columns, e=edge: architecture.tiles(r, c, pad_to=e))
            rate = 2 * edge**2 * 3072 / inside
            share = rate / card.rates.get(f"matrix {dtype}", float("nan"))
            print(
                f"| {edge} | {dtype} | {inside * 1e3:.2f} ms | {rate / 1e12:.1f} | {share:.2f} | {whole * 1e3:.1f} ms "
                f"| {edge**2 / whole:.3g} | {first:.1f} s |",
                flush=True,
            )


def spatial(card: Card, options: argparse.Namespace) -> None:
    """Measure tiles of networks on images."""
    print(
        "| network | dtype | together | us per pair | pairs/s | TF/s | GB/s of the floor's bytes | of the floor | peak GiB | compiled in |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, (spec, shape, (n1, n2), tried) in SPATIAL.items():
        if options.networks and name not in options.networks:
            continue
        architecture = Architecture.from_spec(spec)
        flops = kernel_cost(architecture.to_spec(), architecture.steps(shape)).flops_per_pair
        for dtype in ("float32", "float64"):
            x1, x2 = images(shape, n1, 1, dtype), images(shape, n2, 2, dtype)
            moved = bytes_moved(spec, shape, x1.itemsize)
            for pairs in (*tried, None) if dtype == "float32" else (None,):
                with precision_context(dtype):
                    rows, columns = architecture.prepare(x1), architecture.prepare(x2)
                    try:
                        taken, first = card.seconds(
                            lambda a=architecture, r=rows, c=columns, p=pairs: a.tiles(r, c, pairs=p), rounds=3
                        )
                    except jax.errors.JaxRuntimeError as error:
                        print(f"| {name} | {dtype} | {pairs} | {str(error).splitlines()[0][:80]} |", flush=True)
                        continue
                pair = taken / (n1 * n2)
                floor = max(
                    flops / card.rates.get(f"elementwise {dtype}", float("nan")),
                    moved / card.rates.get("copy", float("nan")),
                )
                print(
                    f"| {name} | {dtype} | {pairs or 'chosen'} | {pair * 1e6:.3g} | {1 / pair:.4g} | {flops / pair / 1e12:.2f} "
                    f"| {moved / pair / 1e9:.0f} | {floor / pair:.2f} | {peak():.2f} | {first:.0f} s |",
                    flush=True,
                )
    if options.trace:
        trace(options.trace)


def trace(folder: Path) -> None:
    """Record one tile of Myrtle-10 with JAX's profiler, and write the compiled program beside it."""
    spec, shape, *_ = SPATIAL["myrtle10"]
    architecture = Architecture.from_spec(spec)
    rows, columns = architecture.prepare(images(shape, 4, 1)), architecture.prepare(images(shape, 16, 2))
    architecture.tiles(rows, columns, pairs=16)
    with jax.profiler.trace(str(folder), create_perfetto_trace=True):
        architecture.tiles(rows, columns, pairs=16)


def products(card: Card, _: argparse.Namespace) -> None:
    """Measure passes over kept tiles, and count the correct rows of the result."""
    print(
        "| tiles | GB | products | vectors | ms per pass | GB/s of the tiles | of a copy's | error |\n|---|---|---|---|---|---|---|---|"
    )
    edge, grid = 2048, 12
    n = edge * grid
    rng = np.random.default_rng(0)
    addresses = [(i, j) for i in range(grid) for j in range(i + 1)]
    for stored in ("float32", "float64"):
        with jax.enable_x64(True):
            draw = jax.jit(lambda key, stored=stored: jax.random.normal(key, (edge, edge), stored))
            kept = {a: draw(jax.random.key(k)) for k, a in enumerate(addresses)}
        size = sum(tile.nbytes for tile in kept.values())
        for vectors in (10, 80):
            x = rng.standard_normal((n, vectors))
            cut = [slice(edge * k, edge * (k + 1)) for k in range(grid)]
            row = sum(np.asarray(kept[2, j], np.float64) @ x[cut[j]] for j in range(3))
            row = row + sum(np.asarray(kept[i, 2], np.float64).T @ x[cut[i]] for i in range(3, grid))
            for precision in ("float32", "float64"):

                def one(x: np.ndarray = x, precision: str = precision, kept: Any = kept) -> np.ndarray:
                    total = DeviceProducts(x, n, precision)
                    for (i, j), tile in kept.items():
                        total.add(tile, i * edge, j * edge, transpose=i != j)
                    return total.result()

                taken, _first = card.seconds(one)
                error = np.abs(one()[cut[2]] - row).max() / np.abs(row).max()
                share = size / taken / card.rates.get("copy", float("nan"))
                print(
                    f"| {stored} | {size / 1e9:.1f} | {precision} | {vectors} | {taken * 1e3:.2f} | {size / taken / 1e9:.0f} "
                    f"| {share:.2f} | {error:.1e} |",
                    flush=True,
                )
        del kept


def memory(card: Card, options: argparse.Namespace) -> None:
    """Check that tiles that do not fit are evaluated in smaller pieces with the same values.

    Run this with a small share of the card's memory.
    """
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    print(
        f"{limit / 2**30:.2f} GiB are allowed\n\n| network | tile | in smaller pieces of | difference | peak GiB |\n|---|---|---|---|---|"
    )
    cases: list[tuple[str, Any, tuple[int, int, int], int, dict[str, Any]]] = [
        ("myrtle10", zoo.myrtle(10, _CIFAR), _CIFAR, 8, {"pairs": 1024}),
        ("fcn", zoo.fcn(3), _CIFAR, 1 << int(np.log2((limit / 16) ** 0.5 * 2)), {}),
    ]
    for name, spec, shape, edge, given in cases:
        if options.networks and name not in options.networks:
            continue
        architecture = Architecture.from_spec(spec)
        rows, columns = architecture.prepare(images(shape, edge, 1)), architecture.prepare(images(shape, edge, 2))
        settings = {"out_dtype": None, "pad_to": None, "pairs": None, **given}
        with Logged() as told:
            (made,) = retry_smaller_on_oom(architecture.tiles, name, rows, columns, **settings)
        few = architecture.prepare(images(shape, edge, 1)[:4]), architecture.prepare(images(shape, edge, 2)[-4:])
        (expected,) = architecture.tiles(*few)
        difference = max(
            float(np.abs(a[:4, -4:] - e).max() / np.abs(e).max()) for a, e in zip(made, expected, strict=True)
        )
        print(
            f"| {name} | {edge} x {edge} | {'; '.join(told.lines) or 'none'} | {difference:.1e} | {peak():.2f} |",
            flush=True,
        )


class Logged(logging.Handler):
    """Collects the messages of `fitting` in the block."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> Logged:
        logger = logging.getLogger("ntkpipe.gram.out_of_memory")
        logger.setLevel(logging.INFO)
        logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("ntkpipe.gram.out_of_memory").removeHandler(self)


def _part(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    return int(number), int(count)


SECTIONS = {f.__name__: f for f in (ceilings, values, flat, spatial, products, memory)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sections", default="ceilings,values,flat,spatial,products")
    parser.add_argument(
        "--networks", type=lambda text: text.split(","), default=[], help="of the sections spatial and memory"
    )
    parser.add_argument("--reference", type=Path, help="folder with public.json and public.npz")
    parser.add_argument("--part", type=_part, default=(0, 1), help="of the section values: 2/6 is the third of six")
    parser.add_argument("--trace", type=Path, help="folder for a profile of one tile")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if jax.default_backend() == "cpu":
        parser.error("JAX sees no accelerator here")
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, numpy {np.__version__}\n")
    card, failed = Card(options.rounds), False
    for name in options.sections.split(","):
        began = time.perf_counter()
        print(f"### {name}\n")
        try:
            SECTIONS[name](card, options)
        except Exception:  # the others are still of use
            failed = True
            traceback.print_exc(file=sys.stdout)
        print(f"\n({time.perf_counter() - began:.0f} s)\n", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
