"""A platform that the environment names and that is not here."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
from ntkpipe.errors import ResourceError
from ntkpipe.kernels.accelerator import default_platform
try:
    print(default_platform())
except ResourceError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("named", "said"), [("nonsense", "JAX_PLATFORMS=nonsense names no device"), ("cpu", "cpu"), ("", "cpu")]
)
def test_a_wrong_platform_is_one_sentence_that_names_the_variable(named, said):
    environment = {**os.environ, "JAX_PLATFORMS": named, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(said)
    assert done.stdout.count("\n") == 1
