"""Random damage to every kind of stored object: each must be detected, named and repaired, or be harmless.

For every solver there are a finished run on real images and runs that were killed in each stage (see `damaged_runs`). A
round copies one of them and damages one object: it flips a bit, truncates, empties, extends or deletes a file, or swaps
or overwrites it with another. Then it checks the run (`ntkpipe verify`) or continues it without a check, and compares
all results with the undisturbed run.

    python benchmarks/random_damage.py --data cifar10_subset.npz --work DIR --rounds 250 --seed 0 [--seconds 200]
    python benchmarks/random_damage.py --work DIR --table

The first command may be repeated with other seeds: `DIR/damage.jsonl` receives a line per round, and the second command
summarises it. The outcomes are:

named      the damaged object was named and recomputed, or the command refused it by name and its remedy helped
made again the object was recomputed without a message, because objects without a valid receipt count as not computed
harmless   no exported result depends on the object
MISSED     another result, a Python error, or damage that `verify` still finds at the end, which is a fault of ntkpipe

The exit code is 1 if any damage was missed.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import shutil
import sys
import time
import traceback
from pathlib import Path

import numpy as np
from damaged_runs import EXPORTS, KINDS, Base, arrays_of, command, digests, go_on, kind_of, make_bases

from ntkpipe.run.run_dir import RunDir

HOWS = ("flip", "cut", "empty", "grow", "delete", "swap", "copy")
WAYS = ("verify", "gram", "solve", "predict", "run")
OUTCOMES = ("named", "made again", "harmless", "MISSED")
# Of the largest value; what is made again may be summed over other batches.
TOLERANCE = 1e-12
# Bounds hold measurements of rounding.
_BOUNDS = 1e-3
# Share of rounds in which figures are drawn, where no figure was damaged.
_DRAWN = 0.1


def damage(rng: np.random.Generator, how: str, path: Path, others: list[Path]) -> list[Path]:
    """Damage one file, or swap two of a kind, and return the files whose content changed."""
    data = path.read_bytes()
    if how == "delete":
        path.unlink()
        return [path]
    if how in ("swap", "copy"):
        other = others[rng.integers(len(others))]
        theirs = other.read_bytes()
        if theirs == data:
            return []
        path.write_bytes(theirs)
        if how == "swap":
            other.write_bytes(data)
        return [path, other] if how == "swap" else [path]
    at = int(rng.integers(max(1, len(data))))
    changed = {
        "flip": data[:at] + bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :] if data else b"x",
        "cut": data[:at],
        "empty": b"",
        "grow": data + bytes(rng.integers(256, size=int(rng.integers(1, 20)), dtype=np.uint8)),
    }[how]
    path.write_bytes(changed)
    return [path] if changed != data else []


def is_named(path: str, said: str) -> bool:
    """Return whether the messages name the object, by its path or by its kind."""
    parts = path.split("/")
    if "/".join(parts[1:]) in said or path in said:
        return True
    kind = kind_of(Path(path))
    if kind in ("Gram tiles", "Gram receipts"):
        numbers = re.findall(r"\d+", "/".join(parts[-2:]) if kind == "Gram tiles" else parts[-1])
        return f"tile ({numbers[0]}, {numbers[-1] if len(numbers) > 1 else 0})" in said
    if kind == "predictions":
        return f"predictions.zarr/{parts[2]}" in said
    if kind in ("prepared images", "labels, manifest, sources"):
        return "preparing the images again" in said
    return {
        "Krylov basis": "basis of",
        "eigenvectors": "eigenvectors of",
        "cg states": "weights of",
    }.get(kind, "\0") in said


class Round:
    """One damage to one copy of a run, and the commands that follow it."""

    def __init__(self, base: Base, folder: Path, rng: np.random.Generator, truth: dict[str, np.ndarray]) -> None:
        self.base, self.folder, self.rng, self.truth = base, folder, rng, truth
        self.said = ""
        finished = base.path.parent / f"{base.name.split('-')[0]}-finished"
        self.config = RunDir.open(finished / "a").config
        self.draws = bool(rng.random() < _DRAWN)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base.path, folder)
        (folder / "made").unlink()

    def run(self) -> dict:
        """Damage the copy, continue it, compare the results, and return the line of the record."""
        objects = self.base.objects(self.folder)
        kind = sorted(objects)[self.rng.integers(len(objects))]
        path = objects[kind][self.rng.integers(len(objects[kind]))]
        how = HOWS[self.rng.integers(len(HOWS))]
        # A finished run is looked after, or goes on from some stage, so that what is damaged is used.
        way = WAYS[self.rng.integers(len(WAYS))]
        if way not in ("verify", "run"):
            stages = ("gram", "solve", "predict", "report")
            for stage in stages[stages.index(way) :]:
                (self.folder / "a" / "stages" / f"{stage}.json").unlink(missing_ok=True)
        objects = self.base.objects(self.folder)
        if path not in objects.get(kind, ()):
            kind = sorted(objects)[self.rng.integers(len(objects))]
            path = objects[kind][self.rng.integers(len(objects[kind]))]
        changed = [str(p.relative_to(self.folder)) for p in damage(self.rng, how, path, objects[kind])]
        self.draws |= kind in ("figures, report", "kept solutions")
        line = {"base": self.base.name, "kind": kind, "how": how, "way": way, "changed": changed}
        if not changed:
            return {**line, "outcome": "nothing"}
        before = digests(self.folder)
        try:
            fault = self._go_on(way, kind)
        except (Exception, SystemExit):
            fault = traceback.format_exc()
        if fault is not None:
            return {**line, "outcome": "MISSED", "why": fault, "said": self.said[-3000:]}
        if any(is_named(name, self.said) for name in changed):
            return {**line, "outcome": "named"}
        after = digests(self.folder)
        # What is gone now was in the way, and is made when it is needed.
        again = any(after.get(name) != before.get(name) for name in changed)
        return {**line, "outcome": "made again" if again else "harmless"}

    def _do(self, *words: str) -> int:
        code, text = command(self.folder, *words)
        self.said += f"$ ntkpipe {' '.join(words)}\n{text}"
        if code == 1:
            raise RuntimeError("exit code 1")
        return code

    def _go_on(self, way: str, kind: str) -> str | None:
        """Continue the run, and return a description of the fault, or None."""
        if self._do("status", "run_dir=a") == 2:
            self._start_over()
        look = ("verify", "run_dir=a", "tiles=0", "rows=0")
        if way == "verify" and (self.folder / "a" / "run.json").exists():
            self._do(*look, "repair=false")
            if self._do(*look) != 0 and (not self._export() or self._do(*look) != 0):
                return "verify could not repair"
            if "export them again" in self.said:
                self._export()
        code = self._resume()
        if code != 0:
            # The remedy that every error of a stored object names, or a step towards it.
            if not self._refused():
                return f"the run was refused with {code}, and no word of what is damaged"
            if self._do(*look) != 0 or self._resume() != 0:
                return f"refused with {code}, and verify did not help"
        # Files outside of the run are not overwritten unasked: what is said of them is done.
        if (
            self._do(*look, "repair=false") != 0
            and self._do(*look) != 0
            and (not self._export() or self._do(*look) != 0)
        ):
            return "verify finds damage at the end, and cannot repair it"
        if "export them again" in self.said:
            self._export()
        if self._resume() != 0:
            return "the repaired run does not go on"
        return self._compare() or self._compare_files()

    def _resume(self) -> int:
        """Continue the run; only some rounds draw figures, because these take most of the time."""
        stages = ("all",) if self.draws else ("gram", "solve", "predict")
        code, text = go_on(self.folder, self.config, stages)
        self.said += f"$ ntkpipe {' '.join(stages)}\n{text}"
        return code

    def _export(self) -> bool:
        """Export again if `verify` asks for it, and return whether it did."""
        asked = set(re.findall(r"ntkpipe export (run_dir=a format=\w+ path=\S+ overwrite=true)", self.said))
        if "export them again" in self.said:
            asked = {f"run_dir=a format={form} path=exports/predictions.{form} overwrite=true" for form in EXPORTS}
        return bool(asked) and all(self._do("export", *words.split(" ")) == 0 for words in asked)

    def _refused(self) -> bool:
        return "damaged" in self.said or "ntkpipe" in self.said.rpartition("error: ")[2]

    def _start_over(self) -> None:
        """Follow the remedy for a damaged configuration: move the folder away and run again."""
        if "move the folder away and run again" in self.said:
            shutil.move(self.folder / "a", self.folder / "away")

    def _compare(self) -> str | None:
        found = arrays_of(self.folder)
        if set(found) != set(self.truth):
            return f"other arrays: {sorted(found)}"
        for name, mine in found.items():
            theirs = self.truth[name]
            if theirs.dtype.kind != "f":
                same = np.array_equal(mine, theirs)
            else:
                tolerance = _BOUNDS if "bound" in name else TOLERANCE
                scale = np.nanmax(np.abs(np.where(np.isfinite(theirs), theirs, 0.0)), initial=0.0)
                same = np.allclose(
                    mine, theirs, rtol=tolerance if "bound" in name else 0, atol=tolerance * scale, equal_nan=True
                )
            if not same:
                return f"{name} differs by {np.abs(mine - theirs).max() if theirs.dtype.kind == 'f' else '?'}"
        return None

    def _compare_files(self) -> str | None:
        """Compare metrics, the report and exported files with the predictions."""
        files = (
            [p for p in (self.folder / "exports").rglob("*") if p.is_file()]
            if (self.folder / "exports").exists()
            else []
        )
        for form in EXPORTS if files else EXPORTS[-1:]:
            fresh = self.folder / f"fresh.{form}"
            if self._do("export", "run_dir=a", f"format={form}", f"path={fresh.name}", "overwrite=true") != 0:
                return f"export to {form} failed"
            mine = self.folder / "exports" / f"predictions.{form}"
            first = self.base.path / "exports" / mine.name
            if mine in files and mine.read_bytes() not in (fresh.read_bytes(), first.read_bytes()):
                return f"{mine.name} is not what export writes"
        metrics = json.loads((self.folder / "a" / "metrics.json").read_text())
        theirs = json.loads(
            (self.base.path.parent / f"{self.base.name.split('-')[0]}-finished/a/metrics.json").read_text()
        )
        if not _alike(metrics, theirs):
            return "metrics differ"
        return None


def _alike(mine: object, theirs: object) -> bool:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return set(mine) == set(theirs) and all(_alike(mine[k], theirs[k]) for k in mine)
    if isinstance(mine, list) and isinstance(theirs, list):
        return len(mine) == len(theirs) and all(map(_alike, mine, theirs))
    if isinstance(mine, float) and isinstance(theirs, (int, float)):
        return bool(np.isclose(mine, theirs, rtol=_BOUNDS, atol=1e-12))
    return mine == theirs


def table(lines: list[dict]) -> str:
    """Return a table of outcomes by kind of object and by kind of damage, in Markdown."""
    lines = [line for line in lines if line["outcome"] != "nothing"]

    def rows(title: str, key: str, names: list[str]) -> list[str]:
        made = [f"| {title} | damaged | {' | '.join(OUTCOMES)} |", "|---" * (len(OUTCOMES) + 2) + "|"]
        for name in [*names, "in all"]:
            mine = collections.Counter(line["outcome"] for line in lines if name in ("in all", line[key]))
            if mine:
                made.append(f"| {name} | {sum(mine.values())} | {' | '.join(str(mine[o]) for o in OUTCOMES)} |")
        return made

    return "\n".join([*rows("object", "kind", [*KINDS, "others"]), "", *rows("damage", "how", list(HOWS))])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--work", required=True, type=Path, help="a folder for everything; damage.jsonl in it is kept")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no round begins after this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this round of the seed alone, in detail")
    parser.add_argument("--n", type=int, default=256)
    parser.add_argument("--p", type=int, default=64)
    parser.add_argument("--table", action="store_true", help="show what was gathered, and do nothing")
    options = parser.parse_args()
    record = options.work / "damage.jsonl"
    if options.table:
        lines = [json.loads(line) for line in record.read_text().splitlines()]
        print(table(lines))
        return int(any(line["outcome"] == "MISSED" for line in lines))
    if options.data is None:
        parser.error("--data is needed")
    end = time.monotonic() + options.seconds
    bases, truths = make_bases(options.work.resolve(), options.data.resolve(), options.n, options.p)
    lines = []
    for k in range(options.rounds) if options.only is None else [options.only]:
        if time.monotonic() > end:
            break
        rng = np.random.default_rng([options.seed, k])
        base = bases[rng.integers(len(bases))]
        # A folder of its own: this process remembers what it has read where.
        folder = options.work.resolve() / f"round-{os.getpid()}-{k}"
        line = {"seed": options.seed, "round": k, **Round(base, folder, rng, truths[base.name.split("-")[0]]).run()}
        lines.append(line)
        if line["outcome"] == "MISSED" or options.only is not None:
            print(json.dumps(line, indent=1).replace("\\n", "\n"), flush=True)
        if options.only is None:
            shutil.rmtree(folder)
            with record.open("a") as file:
                file.write(json.dumps(line) + "\n")
    print(table(lines))
    return int(any(line["outcome"] == "MISSED" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
