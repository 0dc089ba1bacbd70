"""Files for schedulers: filled in for a configuration, valid for whom they are meant, and never more than they should be."""

from __future__ import annotations

import json
import shlex
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from ntkpipe.cli.main import main
from ntkpipe.cluster.templates import Raw, fill
from ntkpipe.errors import ConfigError

KUBERAY = ("image=me/ntkpipe:1", "claim=shared", "workdir=/shared", "cpus_per_node=8", "memory_per_node=64", "nodes=3")
CLOUD = (
    "image=me/ntkpipe:1",
    "region=eu-west-1",
    "worker_type=g6.xlarge",
    "filesystem=10.0.0.5:/export",
    "workdir=/shared",
)
AWKWARD = 'it\'s $(touch /tmp/never) `id`; "x" && #y'


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run `ntkpipe launch` in an empty folder: exit code, file, and what was said."""
    monkeypatch.chdir(tmp_path)

    def run(kind: str, *settings: str, words: tuple[str, ...] = ()) -> tuple[int, str, str]:
        code = main(["launch", f"cluster/launch={kind}", *(f"cluster.launch.{s}" for s in settings), *words])
        said = capsys.readouterr()
        made = [p for p in (tmp_path / "runs").rglob("launch/*") if p.is_file()]
        return code, made[0].read_text() if made else "", said.out + said.err

    return run


def test_a_slurm_script_is_bash_and_asks_for_what_was_configured(launch, tmp_path: Path) -> None:
    settings = ("nodes=4", "gpus_per_node=8", "cpus_per_node=64", "time_limit=48:00:00", "partition=gpu", "retries=7")
    code, text, said = launch("slurm", *settings, words=("data=digits", "predict.times=[1,inf]"))
    assert code == 0
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    for line in (
        "--nodes=4",
        "--gpus-per-node=8",
        "--cpus-per-task=64",
        "--time=48:00:00",
        "--partition=gpu",
        "--requeue",
    ):
        assert f"#SBATCH {line}\n" in text
    assert "--account" not in text  # not configured
    assert "#SBATCH --signal=B:USR1@120\n" in text
    (command,) = (line for line in text.splitlines() if "-m ntkpipe run" in line)
    words = shlex.split(command.partition(' "cluster.address')[0])
    (folder,) = (tmp_path / "runs").iterdir()
    own = f"run_dir=./runs/{folder.name}"
    assert words[3:] == ["run", "data=digits", "predict.times=[1,inf]", own, "cluster=ray", "cluster.gpus_per_task=1"]
    assert f"sbatch --parsable runs/{folder.name}/launch/ntkpipe.sbatch" in said


def test_values_stay_values(launch, tmp_path: Path) -> None:
    """A shell reads each awkward setting as one word, whatever it holds; nothing else is run."""
    word = f"data.path='{AWKWARD}'".replace("'s", "s")
    code, text, _ = launch("slurm", "python='/opt/a b/python'", words=("data=npz", word))
    assert code == 0
    (command,) = (line for line in text.splitlines() if "-m ntkpipe run" in line)
    probe = command.partition(' "cluster.address')[0].replace("'/opt/a b/python'", "printf '%s\\0'", 1)
    done = subprocess.run(["bash", "-c", probe], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert word in done.stdout.split("\0")
    assert not Path("/tmp/never").exists()


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        ("slurm", "partition='a;b'"),
        ("slurm", "account='$(id)'"),
        ("slurm", "time_limit='1:00'"),
        ("slurm", "interface='eth0 x'"),
        ("kuberay", "image='a b'"),
        ("kuberay", "namespace='A'"),
        ("cloud", "filesystem='h:/x;id'"),
        ("cloud", "ssh_user='-o'"),
        ("slurm", "name='x y'"),
    ],
)
def test_values_that_could_be_more_than_names_are_refused(launch, kind: str, setting: str) -> None:
    code, text, said = launch(kind, setting)
    assert code == 2
    assert not text
    assert f"cluster.launch.{setting.partition('=')[0]}" in said


def test_a_folder_that_slurm_could_misread_is_refused(launch) -> None:
    code, _, said = launch("slurm", words=("run_dir='a b'",))
    assert code == 2
    assert "#SBATCH" in said


def schema_of(value: Any, known: dict[str, Any], where: str = "") -> None:
    """Check names against a table: `{name: table}` of an object, `[table]` of a list, a type of a leaf, None of anything."""
    if isinstance(known, dict):
        assert isinstance(value, dict), where
        assert set(value) <= set(known), f"{where}: {set(value) - set(known)}"
        for name, inner in value.items():
            schema_of(inner, known[name], f"{where}.{name}")
    elif isinstance(known, list):
        assert isinstance(value, list), where
        for k, inner in enumerate(value):
            schema_of(inner, known[0], f"{where}[{k}]")
    elif known is not None:
        assert isinstance(value, known), f"{where}: {value!r}"


# What this file checks of a RayJob: names and types of the fields that the published CRD ray.io/v1 (KubeRay 1.5) has at these
# places, of the pods those of Kubernetes' core/v1 that the template uses. Kubernetes' own admission is not tried.
POD = {
    "spec": {
        "serviceAccountName": str,
        "containers": [
            {
                "name": str,
                "image": str,
                "workingDir": str,
                "resources": {"requests": {"cpu": str, "memory": str, "nvidia.com/gpu": int}, "limits": None},
                "volumeMounts": [{"name": str, "mountPath": str}],
            }
        ],
        "volumes": [{"name": str, "persistentVolumeClaim": {"claimName": str}}],
    }
}
RAY_JOB = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str, "namespace": str},
    "spec": {
        "entrypoint": str,
        "shutdownAfterJobFinishes": bool,
        "ttlSecondsAfterFinished": int,
        "activeDeadlineSeconds": int,
        "backoffLimit": int,
        "rayClusterSpec": {
            "rayVersion": str,
            "authOptions": {"mode": str},
            "headGroupSpec": {"rayStartParams": {"num-cpus": str}, "template": POD},
            "workerGroupSpecs": [
                {
                    "groupName": str,
                    "replicas": int,
                    "minReplicas": int,
                    "maxReplicas": int,
                    "rayStartParams": {},
                    "template": POD,
                }
            ],
        },
    },
}


def test_a_rayjob_has_the_fields_of_the_published_definition(launch, tmp_path: Path) -> None:
    settings = (*KUBERAY, "gpus_per_node=2", "time_limit=2-01:00:00")
    code, text, said = launch("kuberay", *settings, words=("predict.times=[inf]", "solver=cg"))
    assert code == 0
    job = yaml.safe_load(text)
    schema_of(job, RAY_JOB)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert spec["activeDeadlineSeconds"] == 49 * 3600
    assert shlex.split(spec["entrypoint"])[:4] == ["python", "-m", "ntkpipe", "run"]
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    (workers,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert workers["replicas"] == 3
    (container,) = workers["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"memory": "64Gi", "nvidia.com/gpu": 2}
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"kubectl apply -f runs/{folder.name}/launch/rayjob.yaml" in said


def test_a_cloud_file_passes_rays_own_schema(launch) -> None:
    code, text, said = launch("cloud", *CLOUD, "nodes=5")
    assert code == 0
    made = yaml.safe_load(text)
    jsonschema.validate(made, json.loads(files("ray.autoscaler").joinpath("ray-schema.json").read_text()))
    assert made["available_node_types"]["worker"]["min_workers"] == 5
    (up, job) = (line[2:] for line in said.splitlines() if line.startswith("# ray "))
    assert shlex.split(up)[:3] == ["ray", "up", "--yes"]
    remote = shlex.split(job)[-1]
    subprocess.run(["bash", "-n", "-c", remote], check=True)
    assert "-eq 75" in remote


def test_the_loop_of_a_cloud_starts_again_on_75_alone(launch, tmp_path: Path) -> None:
    _, _, said = launch("cloud", *CLOUD, f"python={tmp_path}/python", f"workdir={tmp_path}")
    (job,) = (line[2:] for line in said.splitlines() if line.startswith("# ray exec"))
    fake = tmp_path / "python"
    for codes, started in (("75 75 0", 3), ("75 2", 2), ("0", 1)):
        fake.write_text(f'#!/bin/bash\necho x >> log\nset -- {codes}\nn=$(wc -l < log)\nexit "${{!n}}"\n')
        fake.chmod(0o755)
        done = subprocess.run(["bash", "-c", shlex.split(job)[-1]], check=False, timeout=10)
        assert done.returncode == (0 if codes.endswith("0") else 1)
        assert len((tmp_path / "log").read_text().split()) == started
        (tmp_path / "log").unlink()


@pytest.mark.parametrize(("kind", "missing"), [("kuberay", "claim"), ("cloud", "filesystem")])
def test_what_a_launcher_needs_is_named(launch, kind: str, missing: str) -> None:
    code, _, said = launch(kind)
    assert code == 2
    assert f"cluster.launch.{missing}" in said


def test_a_run_outside_the_shared_folder_is_refused(launch) -> None:
    code, _, said = launch("kuberay", *KUBERAY, words=("run_dir=/elsewhere/run",))
    assert code == 2
    assert "workdir" in said


def test_nothing_to_launch_with_and_sweeps(launch) -> None:
    assert launch("none")[0] == 2
    code, _, said = launch("slurm", words=("--multirun", "kernel.depth=1,2"))
    assert code == 2
    assert "one run" in said


def test_a_launched_folder_may_become_a_run(launch, tmp_path: Path) -> None:
    assert launch("slurm")[0] == 0
    assert main(["gram", "cluster=serial", "data.train_size=40", "data.test_size=10", "store.url=store"]) == 0


def test_filling() -> None:
    values = {"a": "x y", "b": None, "c": Raw("'p' q"), "d": ["1", {"k": "#: {"}]}
    assert fill("{{a}} z\n{{b}}\n{{c}}\n", values, shell=True) == "'x y' z\n'p' q\n"
    assert yaml.safe_load(fill("a: {{a}}\nb: {{b}}\nd: {{d}}\n", values, shell=False)) == {"a": "x y", "d": values["d"]}
    with pytest.raises(ConfigError, match="#SBATCH"):
        fill("#SBATCH --x={{a}}\n", values, shell=True)
