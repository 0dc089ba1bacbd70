"""Spectra of a run's kernels, from its stored tiles and its targets."""

from __future__ import annotations

from dataclasses import replace

from ntkpipe.dynamics.spectrum import Spectrum
from ntkpipe.errors import ConfigError
from ntkpipe.events.event import Tell, tell_nobody
from ntkpipe.run.context import RunContext
from ntkpipe.run.prepare import reopen
from ntkpipe.run.run_dir import RunDir
from ntkpipe.run.solving import problem_of, workspace_of
from ntkpipe.solvers.spectrum import spectrum_of
from ntkpipe.tasks.executor import Executor


def spectrum_of_run(
    run: RunDir,
    executor: Executor,
    kernel: str | None = None,
    *,
    probes: int = 32,
    top: int = 200,
    tell: Tell = tell_nobody,
    context: RunContext | None = None,
) -> Spectrum:
    """Return the spectrum of one kernel at the run's ridges and learning rate, with errors in the units of the data.

    Args:
        run: a run whose tiles are computed.
        executor: computes the products.
        kernel: `ntk`, `nngp`, ...; None is the run's first kernel.
        probes: see `ntkpipe.spectrum`.
        top: see `ntkpipe.spectrum`.
        tell: receives lines about passes.
        context: context of the run; None opens the run again.

    Raises:
        ConfigError: if the run has no such kernel.
        IncompleteError: if its tiles are not computed yet.
    """
    run.require("gram")
    here = reopen(run) if context is None else context
    names = run.config.predict.kernels
    name = names[0] if kernel is None else kernel
    if name not in names:
        raise ConfigError(f"kernel={name} is not one of the run's kernels: {', '.join(names)}")
    found = spectrum_of(problem_of(here, name), workspace_of(here, executor, tell), probes=probes, top=top)
    scale = here.data.labels().scale
    # With all pairs of outputs, one column holds outputs of several scales.
    return found if here.kernels.rows_of_point > 1 else replace(found, scale=scale)
