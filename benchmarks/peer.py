"""The peer in a separate environment, and two sides that are called in turn.

Each side is a server in a separate process. So other load on the machine affects both, and they share no library, flags
or memory. Benchmarks print the median over rounds of the ratio of their times.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

REQUIREMENTS = ["jax==0.4.30", "jaxlib==0.4.30", "numpy<2", "scipy<1.13", "neural-tangents==0.6.5"]
DEFAULT_ENVIRONMENT = Path(".venv-peer")

# A server's program defines `evaluate`; this follows it, and answers every line of input with the seconds that it took.
_SERVE = """
import sys as _sys, time as _time
print("ready", flush=True)
for _line in _sys.stdin:
    _start = _time.perf_counter()
    evaluate(_line.strip())
    print(_time.perf_counter() - _start, flush=True)
"""


def peer_python(folder: Path) -> str:
    """Return the interpreter of the peer's environment, which is created with this interpreter if it does not exist."""
    folder = folder.resolve()
    python, marker = folder / "bin" / "python", folder / "complete"
    if not marker.exists():
        if sys.version_info[:2] not in ((3, 11), (3, 12)):
            raise SystemExit("jax 0.4.30 needs Python 3.11 or 3.12: run this benchmark with one of them")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)
        marker.touch()
    return str(python)


class Server:
    """One side, in a process of its own.

    Args:
        python: path of the interpreter.
        program: source that defines `evaluate(request: str)`; it finds `arguments` in `sys.argv[1:]`.
        arguments: see `program`.
        variables: additional environment variables.
    """

    def __init__(
        self, python: str, program: str, arguments: Sequence[str], variables: Mapping[str, str] | None = None
    ) -> None:
        # An x64 flag or a path of this process would be inherited by both sides.
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "JAX_ENABLE_X64")}
        self._process = subprocess.Popen(
            [python, "-c", program + _SERVE, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment, "JAX_PLATFORMS": "cpu", **(variables or {})},
        )
        self._read()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a server stopped; its error is above")
        return line

    def seconds(self, request: str = "") -> float:
        """Return the seconds of one more evaluation."""
        assert self._process.stdin is not None
        self._process.stdin.write(request + "\n")
        self._process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        """Stop the process."""
        self._process.terminate()
        self._process.wait()


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
