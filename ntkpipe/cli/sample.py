"""`ntkpipe sample`: samples a finite network's weight posterior and compares it with the infinite network.

The result is text or JSON, and a figure.
"""

from __future__ import annotations

import json
import sys

from ntkpipe.cli.arguments import number, whole
from ntkpipe.cli.session import Session
from ntkpipe.config import RunConfig
from ntkpipe.errors import ConfigError
from ntkpipe.finite.sampling import SampleSettings
from ntkpipe.report.drawing import can_draw, drawing, without_figures
from ntkpipe.run.places import anchored
from ntkpipe.run.sampling import sample_weights
from ntkpipe.storage.plain import json_ready
from ntkpipe.tasks import stopping


def _tell(line: str) -> None:
    """Print a line of progress at once, and check for a stop request."""
    print(line, file=sys.stderr, flush=True)
    stopping.check()


def sample(config: RunConfig, session: Session, **own: str | None) -> None:
    """Draw the samples, compare them with the infinite network, and print the result."""
    if own["format"] not in ("table", "json"):
        raise ConfigError(f"format={own['format']} is not one of table, json")
    width = None if own["finite.width"] is None else whole("finite.width", own["finite.width"])
    names = ("count", "chains", "warmup", "thin", "piece", "seed")
    settings = SampleSettings(
        method=str(own["sample.method"]), **{name: whole(f"sample.{name}", own[f"sample.{name}"]) for name in names}
    )
    noise = number("sample.noise", own["sample.noise"])
    made = sample_weights(anchored(config), width, noise, settings, session.executor, _tell)
    figure = without_figures("the same command again")
    if can_draw():
        with drawing("the same command again"):
            from ntkpipe.report.sample_figure import write_sample_figure

            infinite = None if made.infinite is None else (made.infinite.mean, made.infinite.variance)
            figure = str(write_sample_figure(made.samples, infinite, made.folder)[0])
    record = made.record
    if own["format"] == "json":
        print(json.dumps(json_ready(record), allow_nan=False))
        return
    size = f"{record['effective_samples']:.1f} of {record['samples']:,} ({record['effective_share']:.0%})"
    print(f"method      {record['method']}")
    print(f"effective   {size}")
    if record["kl_to_prior"] is not None:
        least = "at least " if record["kl_is_lower_bound"] else ""
        print(
            f"KL          {least}{record['kl_to_prior']:.4g} nats from the prior of the hidden weights to their posterior"
        )
    if record["r_hat"] is not None:
        rates = ", ".join(f"{rate:.0%}" for rate in record["acceptance"])
        print(f"R-hat       {record['r_hat']:.3f}; accepted {rates}")
    for name in ("finite", "infinite"):
        if name in record:
            scores = ", ".join(f"{key} {value:.4g}" for key, value in record[name].items() if value is not None)
            print(f"{name:<12}{scores}")
    if "apart" in record:
        apart = record["apart"]
        print(
            f"difference  means {apart['means_rms']:.3g} ({apart['means_in_deviations']:.2f} posterior deviations), "
            f"ratio of deviations, finite to infinite, {apart['deviations_ratio']:.3f}; standard error of a mean at "
            f"most {record['largest_standard_error']:.2g}"
        )
    for note in record["notes"]:
        print(f"note        {note}")
    print(
        f"\nsamples     {made.folder / 'samples.npz'}\nnumbers     {made.folder / 'sample.json'}\nfigure      {figure}"
    )
