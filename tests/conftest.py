"""What every room's tests share: where the reference values and images lie, and quiet defaults."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

from ntkpipe.tasks.environment import compilation_cache

ROOT = Path(__file__).resolve().parents[1]

# Shapes and dtypes of the numerical rooms are checked at every call of every test. Before anything imports them.
install_import_hook(["ntkpipe.kernels", "ntkpipe.linalg", "ntkpipe.dynamics"], "strict_typing.check")

# Ray reads these once, on import; loopback only, and no warning about accelerator variables of the future.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

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
