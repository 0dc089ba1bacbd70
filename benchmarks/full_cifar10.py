"""All 50,000 + 10,000 CIFAR-10 images, NTK and NNGP, on this machine: seconds per phase, memory, accuracies.

The script runs `ntkpipe run` in a fresh store and samples the memory of all its processes (proportional set sizes, once
a second, without page cache). Then it runs `benchmarks/bare_cifar10.py` with the same number of passes, and prints the
ratio:

    python benchmarks/full_cifar10.py --images cifar10.zip --work /scratch/full

`--side pipeline` or `--side bare` runs one of the two. Results are kept in `--work` and compared when both exist.
Linux only (/proc).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from processes import Sampler

TIMES = "1,10,100,1e3,1e4,1e5,1e6,inf"


def pipeline(options: argparse.Namespace) -> dict:
    """Run ntkpipe, and return the seconds per stage from its receipts."""
    work: Path = options.work
    run_dir, store = work / "run", work / "store"
    command = [
        sys.executable,
        "-m",
        "ntkpipe",
        "run",
        f"data={options.kind}",
        f"data.path={options.images}",
        "kernel=fcn",
        "kernel.depth=3",
        "solver=krylov",
        f"solver.products={options.products}",
        f"predict.times=[{TIMES}]",
        f"solver.tolerance={options.tolerance}",
        f"store.url={store}",
        f"run_dir={run_dir}",
        f"cluster.memory_gib={options.memory_gib}",
        *options.overrides,
    ]
    print(" ".join(command), flush=True)
    began = time.monotonic()
    process = subprocess.Popen(command)
    sampler = Sampler(process.pid)
    sampler.start()
    code = process.wait()
    wall = time.monotonic() - began
    sampler.stopped.set()
    sampler.join()
    if code:
        raise SystemExit(f"ntkpipe run ended with code {code}")
    stages = {path.stem: json.loads(path.read_text()) for path in (run_dir / "stages").glob("*.json")}
    metrics = json.loads((run_dir / "metrics.json").read_text())
    peak = max(size for _, size in sampler.samples)
    result = {
        "wall": wall,
        "peak_bytes": peak,
        "stages": stages,
        "metrics": metrics,
        "samples": [(round(t), size) for t, size in sampler.samples],
    }
    (work / "pipeline.json").write_text(json.dumps(result, indent=1))
    return result


def bare(options: argparse.Namespace, steps: dict[str, int]) -> dict:
    """Run the bare script with the same number of passes."""
    target = options.work / "bare.json"
    given = ",".join(f"{name}={count}" for name, count in steps.items())
    command = [
        sys.executable,
        str(Path(__file__).with_name("bare_cifar10.py")),
        "--images",
        options.images,
        "--kind",
        options.kind,
        "--steps",
        given,
        "--products",
        options.products,
        "--times",
        TIMES,
        "--json",
        str(target),
    ]
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True)
    return json.loads(target.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True)
    parser.add_argument("--kind", default="image_folder")
    parser.add_argument("--work", type=Path, required=True, help="folder for the store, the run and the results")
    parser.add_argument("--products", choices=("float32", "float64"), default="float32")
    parser.add_argument("--tolerance", default="1e-4")
    parser.add_argument("--memory-gib", type=float, default=11.0)
    parser.add_argument("--side", choices=("both", "pipeline", "bare"), default="both")
    parser.add_argument("overrides", nargs="*", help="further settings of ntkpipe run")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    stored = options.work / "pipeline.json"
    ours = pipeline(options) if options.side != "bare" else json.loads(stored.read_text())
    steps = {name: facts["steps"] for name, facts in ours["stages"]["solve"]["kernels"].items()}
    if options.side != "pipeline":
        bare(options, steps)
    print(
        f"\npipeline: {ours['wall']:.0f} s, peak {ours['peak_bytes'] / 2**30:.2f} GiB in all processes, passes {steps}"
    )
    for name, receipt in ours["stages"].items():
        print(f"  {name:<10}{receipt['seconds']:9.1f} s")
    if (options.work / "bare.json").exists():
        floor = json.loads((options.work / "bare.json").read_text())
        total = floor["seconds"]["total"]
        print(f"bare script: {total:.0f} s with passes {floor['steps']}")
        print(f"ratio (wall, start-up, images, report and all): {ours['wall'] / total:.2f}")


if __name__ == "__main__":
    main()
