"""Figures that notebooks show, whether or not pyplot, which would tell them how, is imported."""

from __future__ import annotations

import io

from matplotlib.figure import Figure


class ShownFigure(Figure):
    """A `matplotlib.figure.Figure` that is a picture where it is a cell's last value."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()
