"""What the documentation says of layers, families and commands is what there is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.parameters import LAYERS
from ntkpipe.kernels.spec import load_spec
from ntkpipe.kernels.zoo import FAMILIES

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "architectures.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line.startswith("| `")]
LAYER_ROWS = {op: row for row in ROWS for op in re.findall(r"`(\w+)`", row[0]) if len(row) == 3}
FAMILY_ROWS = {kind: row for row in ROWS for kind in re.findall(r"`(\w+)`", row[0]) if len(row) == 4}


def test_every_layer_has_a_row():
    assert set(LAYER_ROWS) == set(LAYERS)


@pytest.mark.parametrize("op", LAYERS)
def test_parameters_and_defaults(op):
    stated = re.findall(r"`(\w+)`\s*(\[[^\]]*\]|[^,`]*)", LAYER_ROWS[op][1])
    assert [name for name, _ in stated] == [p.name for p in LAYERS[op]]
    for (_, default), parameter in zip(stated, LAYERS[op], strict=True):
        assert parameter.required == (not default)
        if default and parameter.kind == "choice" and parameter.default is not None:
            assert default.strip() == parameter.default
        elif default:
            assert json.loads(default) == parameter.default


@pytest.mark.parametrize("kind", FAMILIES)
def test_fields_of_families(kind):
    def fields(text):
        found = []
        named, *others = text.split(" but ")
        for name in re.findall(r"`(\w+)`", named):
            found += fields(FAMILY_ROWS[name][2]) if name in FAMILY_ROWS else [name]
        if others:
            missing, _, more = others[0].partition(";")
            found = [name for name in found if name not in re.findall(r"`(\w+)`", missing)]
            found += re.findall(r"`(\w+)`", more)
        return found

    assert sorted(fields(FAMILY_ROWS[kind][2])) == sorted(FAMILIES[kind].takes)


def test_the_example_is_a_network(tmp_path):
    (tmp_path / "a.yaml").write_text(TEXT.split("```yaml\n")[1].split("```")[0])
    Architecture.from_spec(load_spec(tmp_path / "a.yaml")).steps((8, 8, 3))
