"""A driver of its own for `test_summing`: nodes of one machine, one of which is lost while it holds parts of a sum."""

from __future__ import annotations

from typing import Any

import numpy as np
import ray
from ray.cluster_utils import Cluster

from ntkpipe.cluster import summing
from ntkpipe.cluster.capacity import Demand, LiveCapacity
from ntkpipe.cluster.ray_pool import RayPool
from ntkpipe.tasks import faults
from ntkpipe.tasks.environment import worker_environment

FACTORS = [10**16, 3, -(10**16), 7]
NODE = {"node_ip_address": "127.0.0.2", "object_store_memory": 200 << 20, "include_dashboard": False}
HEALTH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_failure_threshold": 3}


def main() -> None:
    summing.SLICE_BYTES = 1 << 20
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 1, "_system_config": HEALTH})
    others = [cluster.add_node(**NODE, num_cpus=2) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        capacity = LiveCapacity(Demand(cpus=1.0))
        pool = RayPool(
            faults.Counter, [(f,) for f in FACTORS], capacity=capacity, retries=3, environment=worker_environment(1)
        )
        x = np.random.default_rng(0).standard_normal(((1 << 19) + 3, 1))
        direct = np.array(summing.in_order(pool.broadcast("scaled", x)))
        np.testing.assert_array_equal(pool.total("scaled", x), direct)

        added, kills = summing.Summing._added, [others[1]]

        def late(self: Any) -> np.ndarray:
            if kills:
                cluster.remove_node(kills.pop(), allow_graceful=False)
            return added(self)

        summing.Summing._added = late
        np.testing.assert_array_equal(pool.total("scaled", x), direct)
        assert not kills
        np.testing.assert_array_equal(pool.total("scaled", x), direct)
        print("nodes of the workers:", len({place[0] for place in pool.places if place}), flush=True)
        pool.close()
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
