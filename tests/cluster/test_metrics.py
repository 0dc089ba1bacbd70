"""How a run goes, at the Prometheus endpoint of Ray's node."""

from __future__ import annotations

import logging
import time
import urllib.request

import pytest

from ntkpipe.cluster.metrics import Gauges

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_numbers_reach_the_endpoint_of_the_node(session) -> None:
    import ray

    session.publish("gram", {"done": 12.0, "rate": 3.5})
    port = next(node["MetricsExportPort"] for node in ray.nodes() if node["Alive"])
    if port <= 0:
        pytest.skip('this Ray has no metrics: pip install "ntkpipe[cluster]"')
    wanted = {'quantity="done"': "12.0", 'quantity="rate"': "3.5"}
    found: dict[str, str] = {}
    deadline = time.monotonic() + 60  # Ray exports every ten seconds
    while found != wanted and time.monotonic() < deadline:
        time.sleep(0.5)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        lines = [
            line for line in text.splitlines() if line.startswith("ray_ntkpipe_progress{") and 'stage="gram"' in line
        ]
        found = {name: line.rpartition(" ")[2] for name in wanted for line in lines if name in line}
    assert found == wanted


def test_metrics_that_fail_cost_nothing(monkeypatch, caplog) -> None:
    gauges = Gauges()

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no exporter")

    monkeypatch.setattr("ray.util.metrics.Gauge", fail)
    with caplog.at_level(logging.WARNING):
        gauges.publish("gram", {"done": 1.0})
        gauges.publish("gram", {"done": 2.0})
    assert caplog.text.count("Ray's metrics cannot be set") == 1
