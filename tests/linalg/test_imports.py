from __future__ import annotations

import subprocess
import sys

BLOCKED = ("ray", "zarr", "hydra", "omegaconf", "obstore", "fsspec", "google_crc32c", "pandas", "sklearn")


def test_the_room_imports_with_jax_numpy_and_scipy_alone():
    program = f"""
import sys
for name in {BLOCKED!r}:
    sys.modules[name] = None
from ntkpipe.linalg import assemble, cg, cholesky, device_products, eigh, lanczos, operator, preconditioner, products
from ntkpipe.linalg import solution, tile_worker
"""
    subprocess.run([sys.executable, "-c", program], check=True)
