"""The configuration of a run: one frozen dataclass per stage, in plain Python. The command line builds it from YAML.

The constructors make all checks that need no data, so that an invalid setting stops a run before anything starts.
"""

from ntkpipe.config.cluster import LAUNCHERS, ClusterConfig, LaunchConfig
from ntkpipe.config.data import DataConfig
from ntkpipe.config.finite import FiniteConfig
from ntkpipe.config.gram import GridConfig, StoreConfig
from ntkpipe.config.kernel import COMBINED, GIVEN_KERNELS, KERNELS, PLAIN_KERNELS, KernelConfig
from ntkpipe.config.plain import from_dict, to_dict
from ntkpipe.config.predict import PredictConfig
from ntkpipe.config.run import RunConfig, WatchConfig
from ntkpipe.config.solver import SolverConfig

__all__ = [
    "COMBINED",
    "GIVEN_KERNELS",
    "KERNELS",
    "LAUNCHERS",
    "PLAIN_KERNELS",
    "ClusterConfig",
    "DataConfig",
    "FiniteConfig",
    "GridConfig",
    "KernelConfig",
    "LaunchConfig",
    "PredictConfig",
    "RunConfig",
    "SolverConfig",
    "StoreConfig",
    "WatchConfig",
    "from_dict",
    "to_dict",
]
