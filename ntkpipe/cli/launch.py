"""`ntkpipe launch`: a scheduler's file for this very configuration, written into the run's folder, and submitted on demand."""

from __future__ import annotations

import shlex

from hydra.core.hydra_config import HydraConfig

from ntkpipe.cli.arguments import truth
from ntkpipe.cli.session import Session
from ntkpipe.cli.told import job_words
from ntkpipe.cluster.launch import prepare
from ntkpipe.cluster.launch import submit as submit_to
from ntkpipe.config import RunConfig
from ntkpipe.errors import ConfigError


def launch(config: RunConfig, session: Session, *, submit: str | None) -> None:
    """Show and write the file; submit it if told to.

    Args:
        config: of the run; `config.cluster.launch` says what nodes it wants.
        session: not used.
        submit: `true` or `false`.

    Raises:
        ConfigError: if a setting of the launcher is missing or cannot be passed on, or this is a sweep.
        ResourceError: if the scheduler refuses the job.
    """
    del session
    state = HydraConfig.get()
    if str(state.mode).endswith("MULTIRUN"):
        raise ConfigError(
            "ntkpipe launch starts one run: launch each of a sweep, with a run_dir and a cluster.launch.name of its own"
        )
    wanted = truth("submit", submit)
    words = job_words()
    if not any(word.startswith("run_dir=") for word in words):  # where the job starts paths may look otherwise
        words.append(f"run_dir={config.run_dir}")
    made = prepare(config.cluster, config.run_dir, words)
    made.write()
    print(made.text, end="")
    print(f"# written to {made.path}")
    for command in made.commands:
        print(f"# {shlex.join(command)}")
    if wanted:
        print(f"submitted: {submit_to(made, config.cluster.launch)}")
    else:
        print("# submit=true submits it")
