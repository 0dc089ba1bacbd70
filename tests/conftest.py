"""What every room's tests share: where the reference values and images lie, and quiet defaults."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Shapes and dtypes of the numerical rooms are checked at every call of every test. Before anything imports them.
install_import_hook(["ntkpipe.kernels", "ntkpipe.linalg", "ntkpipe.dynamics"], "strict_typing.check")

# Ray reads these once, on import; loopback only, and no warning about accelerator variables of the future.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with `reference/` and `data/`, beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"no reference values and images beside the checkout ({SHARED.name}/ is absent)")
    return SHARED


@pytest.fixture(scope="session")
def cifar10_subset(shared: Path) -> Path:
    """The .npz of 5,085 + 1,017 real CIFAR-10 images."""
    path = shared / "data" / "cifar10_subset.npz"
    if not path.exists():
        pytest.skip(f"{path.name} is absent")
    return path
