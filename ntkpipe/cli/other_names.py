"""Names that other libraries and papers use for settings of ntkpipe."""

from __future__ import annotations

NAMES: dict[str, str] = {
    "augment": "augmentation flip flips",
    "cluster.gpus_per_task": "gpu gpus num_gpus n_gpus device devices",
    "cluster.launch.nodes": "nodes num_nodes n_nodes",
    "cluster.memory_gib": "memory mem ram memory_gb",
    "cluster.workers": "processes num_workers n_workers n_jobs jobs",
    "data.features": "columns inputs x",
    "data.shape": "size image_shape input_shape",
    "data.standardize": "normalize normalise normalization standardise scale",
    "data.subset_seed": "seed random_state random_seed",
    "data.target": "target_column label_column y",
    "data.test_fraction": "test test_split test_ratio",
    "data.train_size": "train n train_n num_train n_samples",
    "finite.steps": "epochs n_epochs num_epochs iterations",
    "finite.widths": "width units hidden hidden_size",
    "grid.edge": "tile tile_size chunk chunks chunk_size block_size",
    "kernel.activation": "nonlinearity nonlin phi act",
    "kernel.b_std": "sigma_b b_sigma bias_std sb",
    "kernel.depth": "layers num_layers n_layers n_hidden",
    "kernel.w_std": "sigma_w w_sigma weight_std sw",
    "predict.covariance": "variance variances uncertainty uncertainties std return_std intervals error_bars posterior",
    "predict.learning_rate": "lr eta step_size",
    "predict.ridges": "reg diag_reg lambda alpha regularization regularisation jitter nugget weight_decay l2",
    "predict.times": "t time training_time train_time",
    "predict.train_sizes": "sizes n_trains learning_curve",
    "run_dir": "output output_dir out outdir dir folder directory",
    "solver.max_steps": "max_iter max_iters maxiter iterations max_iterations n_iter",
    "solver.tolerance": "tol eps rtol atol",
    "store.url": "store_dir store_path zarr",
}


def meant(name: str) -> list[str]:
    """Return the settings that a name may mean.

    Args:
        name: the name as the user typed it, with or without its group: `sigma_w` or `kernel.sigma_w`.

    Returns:
        Names of settings. If `name` states a group that has such settings, only the settings of that group.
    """
    group, _, last = name.lower().rpartition(".")
    found = [setting for setting, names in NAMES.items() if last in names.split()]
    inside = [one for one in found if group and one.startswith(f"{group}.")]
    return inside or found
