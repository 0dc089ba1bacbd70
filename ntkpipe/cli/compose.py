"""Commands over a configuration that Hydra composes, such as `run`, `plan` and `describe`, and their sweeps."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ntkpipe.cli.arguments import flags_first, swept, take_own
from ntkpipe.cli.commands import COMMANDS
from ntkpipe.cli.explain import explain
from ntkpipe.cli.folder import config_folder
from ntkpipe.cli.folders import is_own, job_folder, own_folder, sweep_folder
from ntkpipe.cli.recognising import with_data
from ntkpipe.cli.schema import register_schema, to_run_config
from ntkpipe.cli.session import Session
from ntkpipe.cli.stages import FUNCTIONS
from ntkpipe.cli.told import find_given_settings, job_words
from ntkpipe.cli.typed import as_typed
from ntkpipe.cli.words import checked
from ntkpipe.config import ClusterConfig, RunConfig
from ntkpipe.errors import ConfigError, NtkpipeError, RequeueError
from ntkpipe.run.compare import compare
from ntkpipe.run.meanings import check_meanings
from ntkpipe.run.run_dir import RunDir
from ntkpipe.run.sweep import Sweep


def run_composed(command: str, arguments: Sequence[str]) -> int:
    """Compose the configuration and run the command, once or for every job of a sweep.

    Returns:
        The exit code; for a sweep, the largest of its jobs' exit codes.
    """
    own, others = take_own(arguments, COMMANDS[command].defaults())
    words = [as_typed(_open_mapping(word)) for word in flags_first(others)]
    words = with_data(checked(words, config_folder(), COMMANDS[command].own))
    if {"-m", "--multirun"} & set(words) and not any(word.startswith("run_dir=") for word in words):
        words.append(f"run_dir={sweep_folder([word for word in words if not word.startswith('-')])}")
    codes: list[int] = []
    with _composing():
        varying = swept(words)

    ended: list[tuple[str, str]] = []  # the folder of each job, and the reason of its failure or an empty text
    with Session() as session:

        def job(composed: DictConfig) -> None:
            if RequeueError.exit_code not in codes:  # this code ends a sweep
                codes.append(_run_job(command, own, composed, varying, session, ended))

        if any(word.startswith(("-", "hydra")) for word in words):
            _hydra(job, words)
        else:
            _compose_once(job, words)
    if len(ended) > 1 and command in ("run", "predict"):
        print("\n" + "\n".join(_of_all_jobs(ended)))
    return max(codes, default=0)


def _of_all_jobs(ended: Sequence[tuple[str, str]]) -> list[str]:
    """Return lines with the results of a sweep's jobs, best first, and the failed jobs."""
    lines, done = [], [folder for folder, why in ended if not why]
    try:
        if done:
            made = compare(done)
            lines += [str(made), *(str(path) for path in made.write(Path(done[0]).parent))]
    except NtkpipeError as error:
        lines.append(f"warning  {error}")
    failed = [(folder, why) for folder, why in ended if why]
    lines += [f"{len(failed)} of {len(ended)} jobs failed"] if failed else []
    return [*lines, *(f"  {Path(folder).name}: {why}" for folder, why in failed)]


def _compose_once(job: Callable[[DictConfig], None], words: Sequence[str]) -> None:
    """Call `job` with the configuration of these words, without a sweep and without Hydra's own flags."""
    register_schema(blank=True)
    with hydra.initialize_config_dir(str(config_folder()), job_name="ntkpipe", version_base="1.3"):
        state = HydraConfig.instance()
        before = state.cfg
        with _composing():
            composed = hydra.compose("config", list(words), return_hydra_config=True)
            state.set_config(composed)
        try:
            job(composed)
        finally:
            state.cfg = before


def _run_job(
    command: str,
    own: Mapping[str, str | None],
    composed: DictConfig,
    varying: set[str],
    session: Session,
    ended: list[tuple[str, str]],
) -> int:
    state = HydraConfig.get()
    overrides, before = job_words(), len(ended)
    try:
        with _composing():
            config, told = to_run_config(composed), find_given_settings(composed)
        # A launched job runs on the cluster where it is launched.
        check_meanings(config, told, assuming={"cluster.kind": "ray"} if command == "launch" else None)
        if str(state.mode).endswith("MULTIRUN"):
            here = [o for o in overrides if o.partition("=")[0].lstrip("+") in varying]
            config = dataclasses.replace(config, run_dir=str(Path(config.run_dir) / job_folder(here)))
            print(f"\njob {state.job.num}: {' '.join(here)}  ->  {config.run_dir}", file=sys.stderr)
            ended.append((config.run_dir, ""))
        elif is_own(config.run_dir):
            config = dataclasses.replace(config, run_dir=own_folder(config, state.runtime.choices.get("experiment")))
        elif command not in ("launch", "plan", "describe", "phase", "calibrate", "tune"):
            config = _stored_if_named_alone(config, overrides)
        FUNCTIONS[command](config, session, **own)
    except NtkpipeError as error:
        print(f"{'stopped' if isinstance(error, RequeueError) else 'error'}: {error}", file=sys.stderr)
        if str(state.mode).endswith("MULTIRUN"):
            here = [o for o in overrides if o.partition("=")[0].lstrip("+") in varying]
            folder = ended.pop()[0] if len(ended) > before else job_folder(here)
            ended.append((folder, str(error).partition("\n")[0]))
        return error.exit_code
    return 0


def _stored_if_named_alone(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return the configuration stored in `run_dir` if the user gave no settings that need another one.

    Settings of the cluster, the store and finite networks may be given with it.
    """
    told = [o for o in overrides if not re.match(r"(run_dir=|cluster[.=]|store\.url=|finite\.)", o)]
    if told:
        return config
    moved = any(o.startswith("store.url=") for o in overrides)
    if (Path(config.run_dir) / "run.json").exists():
        stored = RunDir.open(config.run_dir, store=config.store.url if moved else None).config
    elif (sweep := Sweep.find(config.run_dir)) is not None and sweep.config is not None:
        stored = dataclasses.replace(sweep.config, store=config.store) if moved else sweep.config
    else:
        return config
    told = [o for o in overrides if o.startswith("cluster")]
    cluster: ClusterConfig = config.cluster if told else stored.cluster
    finite = config.finite if any(o.startswith("finite.") for o in overrides) else stored.finite
    return dataclasses.replace(stored, run_dir=config.run_dir, cluster=cluster, finite=finite)


def _open_mapping(word: str) -> str:
    """Return the word with `++` if it adds a name to a mapping, because Hydra adds names only with `++`."""
    return f"++{word}" if re.match(r"(kernel\.activation_args|cluster\.resources)[.=]", word) else word


@contextlib.contextmanager
def _composing(begun: Sequence[Any] = ()) -> Iterator[None]:
    """Context manager that turns Hydra's errors into a ConfigError without a traceback.

    Args:
        begun: not empty once a job runs; errors of a job are not Hydra's.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error)) from error
    except ValueError as error:  # Hydra raises it for overrides such as `data=null`
        if begun or isinstance(error, NtkpipeError):
            raise
        raise ConfigError(explain(error)) from error


def _hydra(job: Any, words: Sequence[str]) -> None:
    """Call `job` through Hydra as the main function of a script with these arguments.

    Sweeps and Hydra's own output need this.
    """
    # The printed configuration includes the defaults.
    register_schema(
        blank=not {"--cfg", "-c", "--help", "-h", "--info", "-i"} & {word.partition("=")[0] for word in words}
    )
    begun: list[bool] = []

    def main(composed: DictConfig) -> None:
        begun.append(True)
        job(composed)

    decorated = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(main)
    before = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["ntkpipe", *words]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, do not print and exit
    try:
        with _composing(begun):
            decorated()
    finally:
        sys.argv = before[0]
        if before[1] is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before[1]
