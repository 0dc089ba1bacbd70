"""The spectra of a run's kernels, from its stored tiles and its targets."""

from __future__ import annotations

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
    """The spectrum of one kernel at the run's ridges and learning rate.

    Args:
        run: whose tiles are there.
        executor: of the products.
        kernel: `ntk`, `nngp`, ...; None is the first that the run predicts with.
        probes: see `ntkpipe.spectrum`.
        top: likewise.
        tell: told of passes.
        context: of the run, if it is at hand.

    Raises:
        ConfigError: if the run has no such kernel.
        IncompleteError: if its tiles are not there.
    """
    run.require("gram")
    here = reopen(run) if context is None else context
    names = run.config.predict.kernels
    name = names[0] if kernel is None else kernel
    if name not in names:
        raise ConfigError(f"kernel={name} is not one of those that the run predicts with: {', '.join(names)}")
    return spectrum_of(problem_of(here, name), workspace_of(here, executor, tell), probes=probes, top=top)
