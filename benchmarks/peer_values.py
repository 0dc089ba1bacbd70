"""Kernels and predictions of neural-tangents for the networks of tests/peer_networks.py, stored for the tests.

    python benchmarks/peer_values.py --out tests/reference/stax.json

The script runs in the peer's environment, which is created if it does not exist; see peer.py.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path

from peer import DEFAULT_ENVIRONMENT, peer_python

_PROGRAM = """
import json, sys, warnings
import numpy as np
import jax
jax.config.update("jax_enable_x64", True)
warnings.simplefilter("ignore")
import neural_tangents as nt
from neural_tangents import stax
import peer_networks
arrays = peer_networks.inputs()
values = {}
for name, (make, key) in peer_networks.networks(stax).items():
    x = arrays[key]
    cut = 3 if len(x) > 3 else 2
    _, _, kernel_fn = make()
    made = {}
    for pair, (x1, x2) in {"own": (x[:cut], None), "cross": (x[:cut], x[cut:])}.items():
        nngp, ntk = kernel_fn(x1, x2, ("nngp", "ntk"))
        made[pair] = {"nngp": np.asarray(nngp).tolist(), "ntk": np.asarray(ntk).tolist()}
    values[name] = made
    print(name, file=sys.stderr)
x = arrays["points"]
y = np.sin(np.arange(3.0))[:, None]
_, _, kernel_fn = peer_networks.fcn(stax)
predict_fn = nt.predict.gradient_descent_mse_ensemble(kernel_fn, x[:3], y, diag_reg=1e-3)
predictions = {}
for get in ("nngp", "ntk"):
    for t in (None, 20.0):
        made = predict_fn(x_test=x[3:], t=t, get=get, compute_cov=True)
        predictions[f"{get} {t}"] = {"mean": np.asarray(made.mean).tolist(), "covariance": np.asarray(made.covariance).tolist()}
rate = float(nt.predict.max_learning_rate(kernel_fn(x[:3], None, "ntk"), y.size))
print(json.dumps({"kernels": values, "predictions": predictions, "max_learning_rate": rate}))
"""


def main() -> None:
    """Run the peer, and write its output to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--environment", type=Path, default=DEFAULT_ENVIRONMENT)
    arguments = parser.parse_args()
    tests = str(Path(__file__).resolve().parents[1] / "tests")
    variables = {k: v for k, v in os.environ.items() if k != "JAX_ENABLE_X64"}
    done = subprocess.run(
        [peer_python(arguments.environment), "-c", _PROGRAM],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=variables | {"PYTHONPATH": tests, "JAX_PLATFORMS": "cpu"},
    )
    arguments.out.write_text(done.stdout)


if __name__ == "__main__":
    main()
