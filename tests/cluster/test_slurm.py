"""A real SLURM of two nodes on this machine: the launched job runs, is warned ahead of its time limit and is requeued."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
PATIENCE = 180.0
LAUNCH = ("cluster/launch=slurm", "cluster.launch.cpus_per_node=2", "submit=true")

_MISSING = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(_MISSING), reason=f"no {', '.join(_MISSING)} here (Debian: slurmctld slurmd slurm-client munge)"
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="SLURM's daemons want root"),
]

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
SlurmctldPort={ports[0]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
JobRequeue=1
KillWait=5
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=4000
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Daemons of our own, stopped by their handles; yields the environment of SLURM's commands."""
    folder = Path("/tmp") / f"nts{os.getpid()}"  # sockets want short names
    folder.mkdir(mode=0o755)
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    (folder / "slurm.conf").write_text(CONFIG.format(host=socket.gethostname(), folder=folder, ports=free_ports(3)))
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
    environment = {
        **os.environ,
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PATH": f"{os.environ['PATH']}:/usr/sbin",
    }
    munge = [
        f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("key-file", "pid-file", "log-file", "seed-file")
    ]
    daemons: list[subprocess.Popen[bytes]] = []
    err = (folder / "err").open("ab")
    try:
        for words in (
            ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge],
            ["slurmctld", "-D", "-i"],
            ["slurmd", "-D", "-N", "n1"],
            ["slurmd", "-D", "-N", "n2"],
        ):
            daemons.append(subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=err))
            time.sleep(0.3)
        until(lambda: said(environment, "sinfo", "-h", "-o", "%D %t") == "2 idle", 30.0, folder)
        yield environment
        said(environment, "scancel", "--state=RUNNING")
        said(environment, "scancel", "--state=PENDING")
        until(lambda: not said(environment, "squeue", "-h"), 30.0, folder)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        err.close()
        shutil.rmtree(folder, ignore_errors=True)


def said(environment: dict[str, str], *words: str) -> str:
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.strip() if done.returncode == 0 else f"{done.returncode} {done.stderr}"


def until(what: Callable[[], bool], patience: float, folder: Path) -> None:
    deadline = time.monotonic() + patience
    while not what():
        if time.monotonic() > deadline:
            logs = sorted({*folder.rglob("*.log"), *folder.glob("err")})
            pytest.fail("\n".join(f"{path}:\n{path.read_text(errors='replace')[-3000:]}" for path in logs))
        time.sleep(0.3)


def launch(slurm: dict[str, str], folder: Path, *words: str) -> str:
    """Submit; the job's number."""
    environment = {**slurm, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for name in ("RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-m", "ntkpipe", "launch", "data=digits", "store.url=store", "run_dir=run", *LAUNCH, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("submitted: ")
    return done.stdout.split()[-1]


def test_a_job_on_two_nodes_is_warned_requeued_and_goes_on(slurm: dict[str, str], tmp_path: Path) -> None:
    """SLURM sends the warning two minutes ahead of the limit; here it is sent by hand, as `scancel` does."""
    job = launch(slurm, tmp_path, "cluster.launch.nodes=2", "data.train_size=600", "data.test_size=50", "grid.edge=16")
    until(lambda: len(list(tmp_path.glob("store/gram/*/receipts/train/*"))) >= 30, PATIENCE, tmp_path)
    said(slurm, "scancel", "--batch", "--signal=USR1", job)
    log = tmp_path / "run" / "launch" / f"slurm-{job}.log"
    until(lambda: "requeued" in log.read_text(), PATIENCE, tmp_path)
    text = log.read_text()
    assert "this run received SIGUSR1" in text
    assert "ended with code 75: requeued" in text
    assert "2 nodes for 4 tasks" in text

    def reported() -> bool:
        # A requeued job waits for two minutes unless told otherwise.
        if said(slurm, "squeue", "-h", "-o", "%t") == "PD":
            said(slurm, "scontrol", "update", f"JobId={job}", "StartTime=now")
        return (tmp_path / "run" / "stages" / "report.json").exists()

    until(reported, PATIENCE, tmp_path)
    receipt = json.loads((tmp_path / "run" / "stages" / "gram.json").read_text())
    assert receipt["reused"] >= 30
    until(lambda: not said(slurm, "squeue", "-h"), PATIENCE, tmp_path)
    assert "ExitCode=0:0" in said(slurm, "scontrol", "show", "job", job)
    assert not list((tmp_path / "run" / "launch").glob("ray-token-*"))
