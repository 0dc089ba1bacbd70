"""`ntkpipe launch`: writes a scheduler's job file for this exact configuration, and submits it on demand."""

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
    """Print the job file, write it into the run's folder, and submit it if `submit` is true.

    Args:
        config: configuration of the run; `config.cluster.launch` describes the nodes.
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
            "ntkpipe launch starts one run, not a sweep: launch each run separately, each with its own run_dir and "
            "cluster.launch.name"
        )
    wanted = truth("submit", submit)
    words = job_words()
    if not any(word.startswith("run_dir=") for word in words):  # the job may start in another working directory
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
        print("# submit=true submits this job")
