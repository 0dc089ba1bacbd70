from __future__ import annotations

import numpy as np
import pytest

from ntkpipe.cli.folder import config_folder

EXPERIMENTS = sorted(p.stem for p in (config_folder() / "experiment").glob("*.yaml"))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("data.path=mine", "choose one, data=npz, data=table"),
        ("+data.path=mine", "choose one, data=npz"),
        ("data=synthetic data.path=mine.npz", "no meaning for data=synthetic, which takes data.subset_seed,"),
        ("kernel=myrtle5 kernel.depth=3", "kernel.depth=3 has no meaning for kernel=myrtle5"),
        (
            "kernel=rbf kernel.activation=relu",
            "kernel.activation=relu has no meaning for kernel=rbf, which takes",
        ),
        ("kernel=rbf kernel.activation_args.alpha=0.1", "kernel.activation_args"),
        ("solver.rank=5", "solver.rank=5 has no meaning for solver=auto, which is the default: set solver=cg"),
        ("predict.momentum=0.9", "set predict.dynamics=momentum"),
        ("cluster.resources.big=1", "cluster.resources"),
        ("cluster.launch.nodes=3", "set cluster/launch=slurm, kuberay or cloud"),
        ("experiment=digits_fcn solver.residual=1e-8", "solver.residual"),
        ("kernel.length_scale=${kernel.w_std}", "kernel.length_scale"),
    ],
)
def test_what_is_typed_and_not_read_is_refused(command, tmp_path, words, text):
    code, _, err = command("run", "cluster=serial", *words.split())
    assert (code, text in err) == (2, True), err
    assert not list(tmp_path.iterdir())


def test_each_job_of_a_sweep_is_asked(command):
    code, _, err = command("plan", "--multirun", "kernel=fcn,rbf", "kernel.depth=3", "data=synthetic", "data.n_train=9")
    assert code == 2
    assert err.count("error:") == 1
    assert "kernel.depth=3 has no meaning for kernel=rbf" in err


@pytest.mark.parametrize("place", ["experiment", "kernel"])
def test_files_of_a_folder_of_ones_own_are_asked(command, tmp_path, place):
    folder = tmp_path / "mine"
    (folder / place).mkdir(parents=True)
    text = {
        "experiment": "# @package _global_\nkernel:\n  pool: gap\n  depth: 3\n",
        "kernel": "kind: fcn\npool: gap\n",
    }
    (folder / place / "own.yaml").write_text(text[place])
    code, _, err = command("plan", "--config-dir", str(folder), f"{place}=own")
    assert (code, "kernel.pool=gap has no meaning for kernel=fcn" in err) == (2, True), err


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_set_nothing_that_is_not_read(command, name):
    digits = "override /data: cifar10" not in (config_folder() / "experiment" / f"{name}.yaml").read_text()
    extra = [] if digits else ["data.path=absent"]
    code, _, err = command("plan", f"experiment={name}", *extra)
    assert "has no meaning" not in err
    assert code == (0 if digits else 3)


@pytest.mark.parametrize(
    ("group", "name", "extra"),
    [
        *[
            ("kernel", p.stem, ())
            for p in sorted((config_folder() / "kernel").glob("*.yaml"))
            if p.stem not in ("spec", "gram", "features", "empirical", "sum", "product")
        ],
        *[("solver", name, ("predict.times=[inf]",)) for name in ("cg", "cholesky", "eigh", "krylov")],
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_no_group_sets_what_it_does_not_read(command, group, name, extra):
    code, _, err = command("plan", f"{group}={name}", "data=synthetic", "data.n_train=9", "data.shape=[8,8,3]", *extra)
    assert code == 0, err


def test_a_stored_run_goes_on_whatever_it_was_made_of(command, tmp_path):
    x = np.random.default_rng(0).normal(size=(30, 2, 2, 1))
    y = np.arange(30) % 2
    np.savez("d.npz", x_train=x[:20], y_train=y[:20], x_test=x[20:], y_test=y[20:])
    words = [
        "data=npz",
        "data.path=d.npz",
        "predict.times=[inf]",
        "predict.kernels=[ntk]",
        "run_dir=r",
        "cluster=serial",
    ]
    assert command("run", *words)[0] == 0
    assert command("run", "run_dir=r")[0] == 0
    assert command("run", "run_dir=r", "cluster=serial")[0] == 0


def test_a_launch_takes_what_its_cluster_reads(command):
    words = [
        "cluster/launch=ray",
        "cluster.gpus_per_task=0.5",
        "cluster.max_workers=3",
        "cluster.launch.workdir=/shared",
    ]
    code, out, err = command("launch", *words)
    assert code == 0, err
    assert "cluster.max_workers=3" in out
