"""What every room's tests share: where the reference values and images lie, and quiet defaults."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import jaxtyping
import pytest

from ntkpipe.tasks.environment import compilation_cache

ROOT = Path(__file__).resolve().parents[1]

# Shapes and dtypes of these rooms are checked at every call of their own tests: in those of others the checks took a third of
# the time. Before anything imports the rooms.
TYPED = ("kernels", "finite", "linalg", "dynamics")
jaxtyping.install_import_hook([f"ntkpipe.{room}" for room in TYPED], "strict_typing.check")

# Ray reads these once, on import; loopback only, and no warning about accelerator variables of the future.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

# Here formulas are compared with others to a tolerance, in programs that run for a moment: without most optimisations they are
# compiled in half the time. Everywhere else programs are made as a user's are, whose bits and rounding are what is tested.
UNOPTIMISED = (
    "finite", "kernels/test_families_as_functions.py", "kernels/test_finite_networks.py", "kernels/test_gradients.py",
    "kernels/test_map.py", "kernels/test_truncation.py", "kernels/test_zoo.py", "propagation", "test_stax.py",
)  # fmt: skip

# Thousands of small programs are compiled once per machine, and not in every process and run. Before JAX is imported.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compilation_cache(ROOT / ".pytest_cache" / "jax")))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def reference_folder() -> Path:
    """Folder of values that a peer has computed; its README tells their origin."""
    return ROOT / "tests" / "reference"


@pytest.fixture(scope="session")
def cifar10_subset() -> Path:
    """The .npz of 5,085 + 1,017 real CIFAR-10 images, beside the checkout."""
    path = SHARED / "data" / "cifar10_subset.npz"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return path


def pytest_runtest_setup(item: pytest.Item) -> None:
    place = item.path.relative_to(ROOT / "tests")
    jaxtyping.config.update("jaxtyping_disable", place.parts[0] not in TYPED)
    _compile(optimised=not any(place.is_relative_to(part) for part in UNOPTIMISED))


_compiled: dict[str, bool] = {"optimised": True}


def _compile(*, optimised: bool) -> None:
    """Programs from now on; those without optimisations are forgotten where the others are asked for."""
    if optimised != _compiled["optimised"]:
        import jax

        jax.config.update("jax_disable_most_optimizations", not optimised)
        if optimised:
            jax.clear_caches()
        _compiled["optimised"] = optimised


_SECONDS = "ntkpipe/seconds"
# Of a test of these rooms that has not run here yet.
_USUAL = {"run": 2.0, "uncertainty": 2.0, "cluster": 2.0, "cli": 1.0, "finite": 1.0, "kernels": 1.0}
_spent: dict[str, float] = defaultdict(float)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What shares something is run by one worker, groups that took longest the last time first.

    A file shares its fixtures and what it has compiled; in the rooms of runs and clusters, where tests start their own, a file that
    shares no fixture is one group for each of its functions. Tests of the common cluster are one group.
    """
    cache = getattr(config, "cache", None)  # absent with -p no:cacheprovider
    known = cache.get(_SECONDS, {}) if cache else {}

    def shares(item: pytest.Item) -> bool:
        found = getattr(item, "_fixtureinfo").name2fixturedefs.values()  # noqa: B009
        return any(one.scope == "module" and one.argname != "blank" for definitions in found for one in definitions)

    apart = {item.path for item in items if item.path.parent.name in ("run", "cli", "cluster")}
    apart -= {item.path for item in items if item.path in apart and shares(item)}

    def group(item: pytest.Item) -> str:
        if "session" in getattr(item, "fixturenames", ()):
            return "ray"
        file, _, name = item.nodeid.partition("::")
        return f"{file}::{name.partition('[')[0]}" if item.path in apart else file

    def guess(item: pytest.Item) -> float:
        if item.get_closest_marker("slow"):
            return 15.0
        return _USUAL.get(item.path.relative_to(ROOT / "tests").parts[0], 0.3)

    seconds: dict[str, float] = defaultdict(float)
    for item in items:
        seconds[group(item)] += known.get(item.nodeid, guess(item))
        item.add_marker(pytest.mark.xdist_group(group(item)))
    items.sort(key=lambda item: (-seconds[group(item)], group(item)))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _spent[report.nodeid.partition("@")[0]] += report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    cache = getattr(session.config, "cache", None)
    if cache and not hasattr(session.config, "workerinput"):
        cache.set(_SECONDS, {**cache.get(_SECONDS, {}), **_spent})
