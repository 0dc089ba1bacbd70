from __future__ import annotations

import subprocess
import sys

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
