"""Draws the figures of a validation."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ntkpipe.report.drawing import drawing
from ntkpipe.run.validation.phases import phases_of
from ntkpipe.run.validation.record import curves_of, labels_of
from ntkpipe.run.validation.results import Validation


def draw(made: Validation, folder: Path, again: str) -> list[Path]:
    """Draw all figures, and return the paths of their PNGs.

    Raises:
        ReportError: if the figures cannot be drawn; all results are stored before.
    """
    with drawing(again):
        from ntkpipe.report.validation_figure import Shown, write_validation_figures

        setting = made.setting
        if made.rates:
            shown = Shown(setting.steps, rates=phases_of(made), labelled=labels_of(made))
            return write_validation_figures(shown, folder)
        points, p = setting.points, len(setting.points.test)
        # The output that differs most between the two images.
        first, second = points.y[points.ends[0]], points.y[points.ends[1]]
        output = int(np.argmax(np.abs(first - second)))
        several = len(setting.finite.output_scale) > 1
        names = {key: f"width {key[0]}" + (f", α = {key[1]:g}" if several else "") for key in sorted(made.of)}
        last = made.of[sorted(made.of)[-1]]
        shown = Shown(
            setting.steps,
            points.places,
            {name: made.of[key].others[:, :, p:, output] for key, name in names.items()},
            last.mean[:, p:, output],
            last.variance[:, p:],
            points.class_names[output],
            (float(first[output]), float(second[output])),
            made.claims,
            {name: made.of[key].drift for key, name in names.items()},
            {name: curves_of(made, made.of[key]) for key, name in names.items()},
            labelled=labels_of(made),
        )
        return write_validation_figures(shown, folder)
