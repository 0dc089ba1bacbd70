from __future__ import annotations

import os
import subprocess
import sys

from ntkpipe.linalg import device_products, tile_worker

BLOCKED = ("ray", "zarr", "hydra", "omegaconf", "obstore", "fsspec", "google_crc32c", "pandas", "sklearn")


def test_the_room_imports_with_jax_numpy_and_scipy_alone():
    program = f"""
import sys
for name in {BLOCKED!r}:
    sys.modules[name] = None
from ntkpipe.linalg import assemble, cg, device_products, direct, eigh, lanczos, operator, preconditioner, products
from ntkpipe.linalg import solution, tile_worker
from ntkpipe.linalg.factor import factorise, plan, posterior, refine, solve, task, tiles, workspace
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_worker_without_plugins_for_devices_multiplies_without_jax():
    program = """
import sys
import numpy as np
from ntkpipe.linalg import tile_worker
from ntkpipe.tiles.grid import TileGrid
from ntkpipe.tiles.matrix import InMemoryTiles
tile_worker._plugins = lambda: False
worker = tile_worker.TileWorker(InMemoryTiles(np.full((3, 3), 2.0), TileGrid(3, 3, 2, symmetric=True)), [(0, 0), (1, 0), (1, 1)],
                                "float64", 0)
assert np.array_equal(worker.multiply(np.ones((3, 2))), np.full((3, 2), 6.0))
assert "jax" not in sys.modules
"""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


def test_jax_is_asked_for_devices_where_it_may_have_one(monkeypatch):
    asked = []
    monkeypatch.setattr(device_products, "on_accelerator", lambda: asked.append(True) or True)
    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.delenv("PJRT_NAMES_AND_LIBRARY_PATHS", raising=False)
    for platforms, plugins, expected in (
        ("cpu", True, False),
        ("", False, False),
        ("", True, True),
        ("cuda", False, True),
        ("cuda,cpu", False, True),
    ):
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
        monkeypatch.setattr(tile_worker, "_plugins", lambda plugins=plugins: plugins)
        asked.clear()
        assert tile_worker._on_accelerator() is expected
        assert bool(asked) is expected
