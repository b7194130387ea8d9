"""Entries that take a second each."""

import pytest

from benchmarks.entries import read_field
from tests.conftest import DATA_ROOT

FIELD = f"""
arguments: --config configs/smoke.yaml --data.root {DATA_ROOT}
seconds: [1]
baseline: wide
entries:
  wide:
    arguments: --model.block_out_channels [32,64]
    seconds: [1, 2]
  narrow:
    arguments: ""
"""


@pytest.fixture
def write_field(tmp_path):
    def write(text=FIELD):
        path = tmp_path / "field.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def field(write_field):
    return read_field(write_field())
