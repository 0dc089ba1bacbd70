"""Fingerprints of finished runs on real images. Two versions of the code with equal fingerprints give equal bits.

    python benchmarks/run_fingerprints.py --data cifar10_subset.npz --work DIR [--only NAME,...]      run, and write DIR/fingerprints.json
    python benchmarks/run_fingerprints.py --compare DIR/fingerprints.json OTHER/fingerprints.json      exit code 1 where they differ

Every run uses the command line in a separate process. There is one run per solver, and there are runs that are restarted,
with flips, with variances, with a given kernel, with tiles that are not stored, in float64, with a convolutional network,
and with a learning curve. The record of a run has a hash of every array of its predictions, a hash of its metrics without
times, and the names of the objects in its store.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import zarr

COMMON = "data=npz data.train_size=300 data.test_size=60 cluster=serial grid.edge=128"
# As many BLAS threads in each version: sums of other threads' parts round otherwise.
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
BOTH = "predict.kernels=[ntk,nngp]"
CASES = {
    "krylov": f"{COMMON} solver=krylov {BOTH} predict.ridges=[0,1e-3]",
    "restarted": f"{COMMON} solver=krylov solver.basis_gib=0.0003 predict.times=[10,1000,inf] predict.ridges=[1e-3]",
    "cg": f"{COMMON} solver=cg {BOTH} predict.times=[inf] predict.ridges=[1e-3,1e-1]",
    "cholesky": f"{COMMON} solver=cholesky {BOTH} predict.times=[inf] predict.ridges=[1e-3,1e-1] predict.covariance=diagonal "
    "predict.selection=loo",
    "mixed": f"{COMMON} solver=cholesky solver.precision=mixed predict.times=[inf] predict.ridges=[1e-2]",
    "eigh": f"{COMMON} solver=eigh {BOTH} predict.covariance=full predict.selection=loo predict.ridges=[0,1e-3]",
    "flips": f"{COMMON} augment=hflip solver=krylov {BOTH} predict.covariance=diagonal predict.times=[10,inf] predict.ridges=[1e-3]",
    "variances": f"{COMMON} solver=krylov predict.kernels=[ntk,ntkgp,nngp] predict.covariance=full predict.times=[100,inf] "
    "predict.ridges=[1e-3] predict.selection=held_out",
    "variances_cg": f"{COMMON} solver=cg {BOTH} predict.covariance=diagonal predict.times=[inf] "
    "predict.ridges=[1e-3,1e-1] predict.selection=loo",
    "recomputed": f"{COMMON} store.gram=recompute solver=krylov predict.times=[10,inf] predict.ridges=[1e-3]",
    "float64": f"{COMMON} kernel.dtype=float64 solver=krylov predict.dynamics=momentum predict.momentum=0.9 predict.times=[10,1000]",
    "convolution": "data=npz data.train_size=60 data.test_size=20 data.downsample=4 cluster=serial kernel=cnn_gap kernel.depth=2 "
    "solver=krylov predict.times=[10,inf] predict.ridges=[1e-3]",
    "given": "data=labels data.path={given}/labels.npz kernel=gram kernel.train={given}/K.npy kernel.test={given}/KT.npy "
    "cluster=serial solver=krylov predict.covariance=none predict.ridges=[0,1e-3] predict.times=[10,inf]",
    "curve": "data=npz data.test_size=60 cluster=serial grid.edge=128 solver=krylov predict.train_sizes=[50,100,200,300] "
    "predict.times=[inf] predict.ridges=[1e-2]",
}
# Folders of a store whose names hold the run's place or process.
_PLACES = ("runs", "leases", "compiled")
# Parts of names of what depends on the clock, the machine or the place.
_VOLATILE = (
    "seconds",
    "created",
    "rate",
    "flops_per_second",
    "ntkpipe",
    "url",
    "path",
    "store",
    "run_dir",
    "retries",
    "bytes_read",
)


def _given(folder: Path, data: Path) -> Path:
    """Write a given kernel matrix and its labels, and return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    source = np.load(data)
    train, test = (source[f"x_{b}"][:k].reshape(k, -1) / 255.0 for b, k in (("train", 200), ("test", 40)))
    distance = ((train[:, None, ::16] - train[None, :, ::16]) ** 2).mean(-1)
    cross = ((test[:, None, ::16] - train[None, :, ::16]) ** 2).mean(-1)
    np.save(folder / "K.npy", np.exp(-4 * distance))
    np.save(folder / "KT.npy", np.exp(-4 * cross))
    np.savez(folder / "labels.npz", y_train=source["y_train"][:200], y_test=source["y_test"][:40])
    return folder


def _plain(value: Any) -> Any:
    """Return the content without entries that depend on the clock or the location."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in sorted(value.items()) if not any(part in k for part in _VOLATILE)}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def of_run(folder: Path, work: Path) -> dict[str, str]:
    """Return the hashes of a finished run by their subject; the configuration is hashed without the runs' folder."""
    found: dict[str, str] = {}
    for target in sorted(folder.rglob("predictions.zarr")):
        at = f"{target.parent.relative_to(folder)}/".removeprefix("./")
        group = zarr.open_group(target, mode="r")
        for name, array in sorted(group.arrays()):
            values = np.asarray(array[...])
            found[f"{at}predictions/{name}"] = _hash(f"{values.dtype}{values.shape}".encode() + values.tobytes())
        metrics = json.loads((target.parent / "metrics.json").read_text())
        found[f"{at}metrics"] = _hash(json.dumps(_plain(metrics)).encode())
        receipt = json.loads((target.parent / "run.json").read_text())
        configuration = json.dumps(_plain(receipt.get("config", receipt)), default=str).replace(str(work), "WORK")
        found[f"{at}configuration"] = _hash(configuration.encode())
    for target in sorted(folder.rglob("leave_one_out.npz")):
        with np.load(target) as arrays:
            for name in arrays.files:
                found[f"leave_one_out/{name}"] = _hash(arrays[name].tobytes())
    return found


def of_store(store: Path) -> list[str]:
    """Return the names of a store's objects, which contain their identities, without programs and temporary files."""
    return sorted(
        str(p.relative_to(store))
        for p in store.rglob("*")
        if p.is_file()
        and p.relative_to(store).parts[0] not in _PLACES
        and "sources" not in p.parts
        and "lease" not in str(p)
    )


def run(name: str, work: Path, data: Path) -> dict[str, Any]:
    """Run one case in a fresh folder."""
    folder, store = work / "runs" / name, work / "stores" / name
    for old in (folder, store):
        shutil.rmtree(old, ignore_errors=True)
    words = CASES[name].format(given=_given(work / "given", data)).split()
    if "data=npz" in words:
        words.append(f"data.path={data.resolve()}")
    command = [
        sys.executable,
        "-m",
        "ntkpipe",
        "run",
        *words,
        f"run_dir={folder.resolve()}",
        f"store.url={store.resolve()}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **THREADS}, cwd=work)
    if done.returncode:
        return {"failed": done.returncode, "said": (done.stdout + done.stderr)[-1500:]}
    return {"hashes": of_run(folder, work), "objects": of_store(store)}


def compare(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Return one line per difference."""
    lines = []
    for name in sorted({*first, *second}):
        a, b = first.get(name), second.get(name)
        if a is None or b is None or "failed" in a or "failed" in b:
            lines.append(
                f"{name}: {'missing or failed in the first' if a is None or 'failed' in a else 'missing or failed in the second'}"
            )
            continue
        keys = sorted({*a["hashes"], *b["hashes"]})
        lines += [f"{name}: {key}" for key in keys if a["hashes"].get(key) != b["hashes"].get(key)]
        lines += [f"{name}: object {key}" for key in sorted({*a["objects"]} ^ {*b["objects"]})]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="an npz file of images")
    parser.add_argument("--work", type=Path, help="a folder for runs and stores")
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument("--compare", nargs=2, type=Path)
    options = parser.parse_args()
    if options.compare:
        first, second = (json.loads(path.read_text()) for path in options.compare)
        lines = compare(first, second)
        print("\n".join(lines) or f"{len(first)} runs are equal to the last bit")
        return int(bool(lines))
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    record = work / "fingerprints.json"
    found = json.loads(record.read_text()) if record.exists() else {}
    for name in options.only.split(","):
        found[name] = run(name, work, options.data.resolve())
        print(
            name,
            "failed: " + found[name]["said"] if "failed" in found[name] else f"{len(found[name]['hashes'])} hashes",
            flush=True,
        )
        record.write_text(json.dumps(found, indent=1))
    return int(any("failed" in one for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
