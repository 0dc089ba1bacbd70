"""A run's folder from Python."""

import numpy as np
import pytest
from lab import QUICK, Lab

import ntkpipe
from ntkpipe.errors import ConfigError, IncompleteError


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    path = tmp_path_factory.mktemp("lab")
    return Lab(path, *QUICK, f"store.url={path / 'store'}")  # looked at from elsewhere too


def test_an_opened_run_gives_what_the_command_has_written(lab):
    predictions = lab.run("opened", "predict.times=[10,inf]")
    run = ntkpipe.open_run(lab.path / "opened")
    assert np.array_equal(run.predictions().mean, predictions.mean)
    found, written = run.metrics()["entries"], lab.metrics("opened")["entries"]
    assert [one["accuracy"] for one in found] == [one["accuracy"] for one in written]
    assert found[-1]["time"] == np.inf
    assert run.config.predict.times == (10.0, np.inf)
    assert run.path == lab.path / "opened"
    assert f"{run.path}: " in run.status().splitlines()[0]
    assert repr(run) == run.status()
    (lab.path / "opened" / "report").mkdir(exist_ok=True)
    (lab.path / "opened" / "report" / "report.html").write_text('<p title="a">1 &amp; 2</p>')
    shown = run.report()._repr_html_()
    assert 'srcdoc="&lt;p title=&quot;a&quot;&gt;1 &amp;amp; 2&lt;/p&gt;"' in shown
    assert 'sandbox="allow-scripts"' in shown


def test_a_run_that_has_not_predicted_says_what_to_do(lab):
    assert lab.command("gram", *QUICK, "run_dir=begun") == 0
    run = ntkpipe.open_run(lab.path / "begun")
    assert not run.is_finished
    for ask in (run.predictions, run.metrics):
        with pytest.raises(IncompleteError, match="ntkpipe predict"):
            ask()
    with pytest.raises(IncompleteError, match="ntkpipe report"):
        run.report()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not a run"):
        ntkpipe.open_run(tmp_path)
