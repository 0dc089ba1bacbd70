"""`ntkpipe phase`: analyses signal propagation in the configured network, as text, JSON or a phase diagram."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from ntkpipe.cli.arguments import numbers
from ntkpipe.cli.commands import COMMANDS
from ntkpipe.cli.session import Session
from ntkpipe.config import GIVEN_KERNELS, RunConfig
from ntkpipe.errors import ConfigError
from ntkpipe.gram.from_config import check_kernel, kernel_spec
from ntkpipe.propagation.block import block_map
from ntkpipe.propagation.convolution import averaging_modes, mode_depths
from ntkpipe.propagation.critical import CriticalLine, critical_line
from ntkpipe.propagation.depth import Depths, depth_that_loses, depth_that_splits, depths
from ntkpipe.propagation.diagram import PhaseDiagram, phase_diagram
from ntkpipe.propagation.growth import Growth, growth
from ntkpipe.propagation.isometry import isometry
from ntkpipe.propagation.maps import activation_maps
from ntkpipe.propagation.network import PlainNetwork, Spec, plain_network, repeated_block
from ntkpipe.propagation.phase import Phase, UnsettledError, phase
from ntkpipe.propagation.summary import describe_depth, precision_warning
from ntkpipe.report.drawing import can_draw, drawing, without_figures
from ntkpipe.run.sweep import sweep_runs
from ntkpipe.storage.plain import json_ready
from ntkpipe.units import counted

_STARTS = (0.0, 0.5, 0.9, 0.99)
# Smallest and largest depth of the curves.
_SHOWN = (100, 10_000)


def show_phase(config: RunConfig, session: Session, **own: str | None) -> None:
    """Print the analysis, or draw the phase diagram and write its numbers, without reading data.

    Args:
        config: configuration with the kernel to analyse. The deepest of several depths is analysed.
        session: not used.
        own: the command's own settings; see `commands`.

    Raises:
        ConfigError: if a setting is invalid, or the variance has no fixed point.
    """
    del session
    if own["format"] not in ("text", "json"):
        raise ConfigError(f"format={own['format']} is not one of text, json")
    is_diagram = own["phase.w_std"] is not None or own["phase.b_std"] is not None
    if own["path"] != COMMANDS["phase"].defaults()["path"] and not is_diagram:
        raise ConfigError(
            f"path={own['path']} is the folder of a phase diagram: set phase.w_std=[low,high,count] and "
            "phase.b_std=[low,high,count] as well, or leave path out"
        )
    if own["format"] == "json" and is_diagram:
        raise ConfigError("a phase diagram writes phase.json beside its figure: leave format=json out")
    config = max(sweep_runs(config), key=lambda one: one.kernel.depth)
    check_kernel(config.kernel)
    if config.kernel.kind in GIVEN_KERNELS:
        raise ConfigError(
            f"kernel={config.kernel.kind} is read from files and has no layers, so there is no signal "
            "propagation to analyse: choose a family, such as kernel=fcn"
        )
    shape = _numbers("image_shape", own["image_shape"])
    spec = kernel_spec(config.kernel, [int(n) for n in shape])
    network = plain_network(spec)
    if network is None or own["phase.block"] is not None:
        _show_block(spec, own)
        return
    variance = _numbers("phase.input_variance", own["phase.input_variance"], 1)[0]
    w_text, b_text = own["phase.w_std"], own["phase.b_std"]
    if w_text or b_text:
        _write_diagram(network, config.kernel.dtype, variance, w_text, b_text, Path(own["path"] or "."))
        return
    asked: dict[str, Any] = {"w_std": network.w_std, "b_std": network.b_std, "input_variance": variance}
    try:
        made: Phase | Growth = phase(network.activation, **asked)
        record = made.to_dict() | _beyond(made, network, shape)
    except UnsettledError:
        made = growth(network.activation, depth=network.depth, **asked)
        record = made.to_dict()
    if own["format"] == "json":
        print(json.dumps(json_ready(record), indent=1, allow_nan=False))
    elif isinstance(made, Growth):
        print(f"{made.activation}, w_std={made.w_std:.10g}, b_std={made.b_std:.10g}")
        print("\n".join(f"  {line}" for line in made.lines()))
    else:
        print("\n".join(_text(made, network, config.kernel.dtype, record)))


def _beyond(made: Phase, network: PlainNetwork, shape: list[float]) -> dict[str, Any]:
    """Return the depth that the precision allows, the singular values and the modes of convolutions, JSON-ready."""
    record: dict[str, Any] = {
        "depth": network.depth,
        "lost_depth": {dtype: depth_that_loses(made.xi_c, dtype) for dtype in ("float32", "float64")},
        "split_depth": {dtype: depth_that_splits(made.chi_1, dtype) for dtype in ("float32", "float64")},
    }
    try:
        values = isometry(network.activation, w_std=network.w_std, q_star=made.q_star, depth=network.depth)
        record["isometry"] = {
            "mean": values.mean,
            "variance_gaussian": values.variance_gaussian,
            "variance_orthogonal": values.variance_orthogonal,
        }
    except ConfigError:
        record["isometry"] = None
    if network.filters:
        window = max(network.filters, key=math.prod)
        extent = [int(n) for n in shape[:2]]
        modes = averaging_modes(extent, window)
        lengths = mode_depths(modes, made.chi_c_star)
        record["modes"] = {
            "extent": extent,
            "filter": list(window),
            "along_height": modes[:, 0].tolist(),
            "depth_scales_along_height": lengths[:, 0].tolist(),
        }
    return record


def _text(made: Phase, network: PlainNetwork, dtype: str, record: dict[str, Any]) -> list[str]:
    def row(name: str, value: float | None, meaning: str) -> str:
        return f"  {name:<15} {'none' if value is None or math.isnan(value) else f'{value:.10g}':<17} {meaning}"

    lines = [
        f"{made.activation}, w_std={made.w_std:.10g}, b_std={made.b_std:.10g}: {made.phase}",
        row("q_star", made.q_star, "variance at the fixed point"),
        row(
            "chi_1",
            made.chi_1,
            "slope of the correlation map at 1; squared gradients change by this factor in each layer",
        ),
        row("c_star", made.c_star, "correlation of any two inputs at the fixed point"),
        row("chi_c_star", made.chi_c_star, "slope of the correlation map there"),
        row("xi_q", made.xi_q, "layers in which a deviation of the variance decays to 1/e"),
        row("xi_c", made.xi_c, "layers in which a deviation of the correlation decays to 1/e"),
        row("critical_w_std", made.critical_w_std, "w_std at the edge of chaos, for this b_std"),
    ]
    if len(made.fixed_points) > 1:
        listed = ", ".join(f"{p.q:.6g} ({'stable' if p.is_stable else 'unstable'})" for p in made.fixed_points)
        lines.append(f"  fixed points of the variance: {listed}")
    if made.quadrature_error > 1e-9:
        lines.append(
            f"  error of the numerical integrals: about {made.quadrature_error:.1g}, because the function or its slope is "
            "not bounded, or has too many kinks"
        )
    if (values := record["isometry"]) is not None:
        lines.append(
            f"  squared singular values of the Jacobian of {counted(network.depth, 'layer')}: mean {values['mean']:.4g}, variance "
            f"{values['variance_gaussian']:.4g} with Gaussian and {values['variance_orthogonal']:.4g} with orthogonal weights"
        )
    if (modes := record.get("modes")) is not None and len(modes["depth_scales_along_height"]) > 1:
        lines.append(
            f"  filter {modes['filter'][0]} x {modes['filter'][1]}: the slowest spatial mode over "
            f"{modes['extent'][0]} pixels has a depth scale of {modes['depth_scales_along_height'][1]:.4g} layers"
        )
    return [*lines, *describe_depth(made, network.depth)[1:], *precision_warning(made, network, dtype)]


def _show_block(spec: Spec, own: dict[str, str | None]) -> None:
    if own["phase.w_std"] is not None or own["phase.b_std"] is not None:
        raise ConfigError(
            "a phase diagram needs a plain network: one nonlinearity, equal w_std and b_std, no residual sums, "
            "attention or layer_norm. To analyse a block instead, leave phase.w_std and phase.b_std out"
        )
    stated = own["phase.block"]
    block = (
        repeated_block(spec)
        if stated is None
        else tuple(_whole("phase.block", n) for n in _numbers("phase.block", stated, 2))
    )
    repetitions = _whole("phase.repetitions", _numbers("phase.repetitions", own["phase.repetitions"], 1)[0])
    variance = _numbers("phase.input_variance", own["phase.input_variance"], 1)[0]
    made = block_map(spec, (block[0], block[1]), repetitions=repetitions, variance=variance)
    if own["format"] == "json":
        record = {
            "block": list(block),
            "variance": made.variance.tolist(),
            "slope_at_1": made.slope.tolist(),
            "gradient": made.gradient.tolist(),
        }
        print(json.dumps(json_ready(record), indent=1, allow_nan=False))
        return
    print(f"block of layers {block[0]} to {block[1] - 1}, repeated\n")
    print(f"{'repetition':>10}  {'variance before':>16}  {'slope at c = 1':>16}  {'squared gradients':>18}")
    for k in sorted({0, 1, 2, 4, 9, 19, 49, repetitions - 1}):
        if k < repetitions:
            print(f"{k + 1:>10}  {made.variance[k]:>16.8g}  {made.slope[k]:>16.10g}  {made.gradient[k]:>18.10g}")
    kept = float(np.exp(np.sum(np.log(np.abs(made.slope)))))
    print(f"\nafter {repetitions} repetitions, nearly equal inputs keep {kept:.3g} of their distance 1 - c")


def _write_diagram(
    network: PlainNetwork, dtype: str, variance: float, w_text: str | None, b_text: str | None, folder: Path
) -> None:
    if w_text is None or b_text is None:
        raise ConfigError("a phase diagram needs both axes: phase.w_std=[low,high,count] phase.b_std=[low,high,count]")
    w_std, b_std = _axis("phase.w_std", w_text, above=True), _axis("phase.b_std", b_text, above=False)
    maps = activation_maps(network.activation)
    diagram = phase_diagram(maps, w_std, b_std, variance)
    line = critical_line(maps)
    record: dict[str, Any] = {"activation": maps.name, "network": None, "remark": ""}
    curves: dict[float, Depths] = {}
    try:
        made = phase(network.activation, w_std=network.w_std, b_std=network.b_std, input_variance=variance)
        record["network"] = made.to_dict()
        # long enough for the depth at which float32 has lost c
        shown = int(np.clip(20 * made.xi_c if math.isfinite(made.xi_c) else _SHOWN[1], *_SHOWN))
        curves = {c: depths(maps, network.w_std, made.q_star, c, max(shown, network.depth)) for c in _STARTS}
    except ConfigError as error:  # the diagram also covers other networks, so it is drawn anyway
        made, record["remark"] = None, str(error)
    stretches = _stretches(line)
    folder.mkdir(parents=True, exist_ok=True)
    figure = without_figures("the same command")
    if can_draw():
        with drawing("the same command"):
            from ntkpipe.report.phase_figure import PhasePicture, write_phase_figure

            picture = PhasePicture(
                title=maps.name,
                w_std=w_std,
                b_std=b_std,
                xi_c=diagram.xi_c,
                line=stretches,
                point=(network.w_std, network.b_std),
                correlations={c: one.correlation for c, one in curves.items()},
                ratios={c: one.ntk_ratio for c, one in curves.items()},
                lost={}
                if made is None
                else {dtype: depth_that_loses(made.xi_c, dtype) for dtype in ("float32", "float64")},
                condition=curves[_STARTS[1]].condition(100) if curves else np.empty(0),
                remark=record["remark"],
            )
            figure = str(write_phase_figure(picture, folder)[0])
    inside = (line.w_std >= w_std[0]) & (line.w_std <= w_std[-1]) & (line.b_std <= b_std[-1]) & line.is_stable
    record |= {
        "w_std": w_std.tolist(),
        "b_std": b_std.tolist(),
        "q_star": diagram.q_star.tolist(),
        "chi_1": diagram.chi_1.tolist(),
        "c_star": diagram.c_star.tolist(),
        "xi_c": diagram.xi_c.tolist(),
        "critical": {
            "is_point": line.is_point,
            "w_std": line.w_std[inside].tolist(),
            "b_std": line.b_std[inside].tolist(),
        },
    }
    (folder / "phase.json").write_text(json.dumps(json_ready(record), allow_nan=False) + "\n", encoding="utf-8")
    _write_diagram_table(diagram, folder / "phase.csv")
    if curves:
        _write_depths(curves, folder / "depth.csv")
    if made is not None:
        print("\n".join([*describe_depth(made, network.depth), *precision_warning(made, network, dtype)]))
    else:
        print(record["remark"])
    others = f"phase.csv{', depth.csv' if curves else ''}"
    if can_draw():
        print(f"figure       {figure}   (numbers beside it: phase.json, {others})")
    else:
        print(f"numbers      {folder / 'phase.json'}   (beside it: {others})\n{figure}")


def _stretches(line: CriticalLine) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the stable parts of a line, each as arrays of consecutive points."""
    if line.is_point:
        return [(line.w_std, line.b_std)]
    places = np.flatnonzero(line.is_stable)
    if not len(places):
        return []
    return [(line.w_std[part], line.b_std[part]) for part in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)]


def _write_diagram_table(diagram: PhaseDiagram, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["w_std", "b_std", "q_star", "chi_1", "c_star", "xi_c"])
        for j, b_std in enumerate(diagram.b_std):
            for i, w_std in enumerate(diagram.w_std):
                values = (diagram.q_star[j, i], diagram.chi_1[j, i], diagram.c_star[j, i], diagram.xi_c[j, i])
                rows.writerow([repr(float(value)) for value in (w_std, b_std, *values)])


def _write_depths(curves: dict[float, Depths], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(
            ["first_correlation", "layer", "correlation", "one_minus_correlation", "ntk", "ntk_ratio", "condition_100"]
        )
        for start, made in curves.items():
            condition = made.condition(100)
            for k in range(len(made.gap)):
                values = (made.correlation[k], made.gap[k], made.ntk[k], made.ntk_ratio[k], condition[k])
                rows.writerow([start, k + 1, *(repr(float(value)) for value in values)])


def _axis(name: str, text: str, *, above: bool) -> np.ndarray:
    low, high, count = _numbers(name, text, 3)
    if count != int(count) or count < 2:
        raise ConfigError(f"{name}={text}: the third number, the count, must be a whole number of at least 2")
    if low < 0.0 or (above and low == 0.0) or not high > low:
        bound = "above 0" if above else "at least 0"
        raise ConfigError(f"{name}={text} must be [low,high,count] with low {bound} and high above low")
    return np.linspace(low, high, int(count))


def _numbers(name: str, text: str | None, count: int | None = None) -> list[float]:
    try:
        values = numbers(name, text)
    except ConfigError:
        values = ()
    if not values or (count is not None and len(values) != count) or not all(map(math.isfinite, values)):
        form = {1: "a number", 2: "[first,end]", 3: "[low,high,count]", None: "[height,width,channels]"}[count]
        raise ConfigError(f"{name}={text} must be {form}")
    return list(values)


def _whole(name: str, value: float) -> int:
    if value != int(value):
        raise ConfigError(f"{name}: {value:g} must be a whole number")
    return int(value)
