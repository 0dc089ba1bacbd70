"""`ntkpipe spectrum`: writes eigenvalues, label energies and predicted learning curves of a stored run.

The result is text, tables and a figure.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from ntkpipe.cli.arguments import settings, whole
from ntkpipe.cli.commands import COMMANDS
from ntkpipe.cli.session import Session
from ntkpipe.cli.stages import echo
from ntkpipe.dynamics.spectrum import Spectrum, check_sizes
from ntkpipe.errors import ConfigError
from ntkpipe.report.drawing import can_draw, drawing, without_figures
from ntkpipe.run.prepare import reopen
from ntkpipe.run.run_dir import RunDir
from ntkpipe.run.spectrum import spectrum_of_run
from ntkpipe.run.sweep import Sweep
from ntkpipe.storage.plain import json_ready
from ntkpipe.storage.replace import replace_text, replacing


def run_spectrum(arguments: Sequence[str]) -> int:
    """Run the command, and return the exit code."""
    values = settings(arguments, COMMANDS["spectrum"].defaults(), "spectrum")
    if not values["run_dir"]:
        raise ConfigError("ntkpipe spectrum needs run_dir=DIR, the folder of a run whose tiles are stored")
    if (sweep := Sweep.find(values["run_dir"])) is not None:
        raise ConfigError(f"{sweep.path} holds several runs: choose one, such as run_dir={sweep.runs[-1]}")
    probes, top = whole("probes", values["probes"]), whole("top", values["top"])
    sizes = None if values["sizes"] is None else _sizes(values["sizes"])
    run = RunDir.open(values["run_dir"], store=values["store.url"])
    names = [values["kernel"]] if values["kernel"] else list(run.config.predict.kernels)
    folder = Path(values["path"]).expanduser() if values["path"] else run.path / "spectrum"
    run.require("gram")
    context, spectra = reopen(run), []
    if sizes is not None:  # before hours of passes
        check_sizes(sizes, context.kernels.n)

    def tell(line: str, *, force: bool = False, **facts: object) -> None:
        del force, facts
        echo(f"spectrum {line}")

    with Session() as session:
        for name in names:
            executor = session.executor(run.config)
            spectra.append(spectrum_of_run(run, executor, name, probes=probes, top=top, tell=tell, context=context))
    for one in spectra:
        print("\n".join(one.lines(sizes)))
    print("\n" + "\n".join(_write(spectra, sizes, folder)))
    return 0


def _write(spectra: Sequence[Spectrum], sizes: Sequence[int] | None, folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    record = [one.to_dict(sizes) for one in spectra]
    replace_text(folder / "spectrum.json", json.dumps(json_ready(record), indent=1, allow_nan=False) + "\n")
    modes = [
        (
            one.name,
            k + 1,
            *(repr(float(column[k])) for column in (one.eigenvalues, one.label_energy, one.learning_times)),
        )
        for one in spectra
        for k in range(len(one.eigenvalues))
    ]
    _table(folder / "modes.csv", ["kernel", "mode", "eigenvalue", "label_energy", "learning_time"], modes)
    curves = [[one.learning_curve(sizes, r) for r in range(len(one.ridges))] for one in spectra]
    rows = [
        (one.name, *dataclasses.astuple(point))
        for one, of_ridges in zip(spectra, curves, strict=True)
        for curve in of_ridges
        for point in curve
    ]
    names = [field.name for field in dataclasses.fields(curves[0][0][0])]
    _table(folder / "learning_curve.csv", ["kernel", *names], rows)
    if not can_draw():
        line = without_figures("the same command")
        return [f"numbers      {folder / 'spectrum.json'}   (modes.csv and learning_curve.csv beside it)", line]
    with drawing("the same command"):
        from ntkpipe.report.spectrum_figure import write_spectrum_figure

        png, _ = write_spectrum_figure(spectra, curves, folder)
    return [f"figure       {png}   (spectrum.svg, spectrum.json, modes.csv and learning_curve.csv beside it)"]


def _table(path: Path, names: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(rows)


def _sizes(text: str) -> list[int]:
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, list) or not values or not all(type(n) is int and n > 0 for n in values):
        raise ConfigError(f"sizes={text} must be a list of whole numbers, such as sizes=[500,1000]")
    return values
