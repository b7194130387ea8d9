import json
import sys

import pytest

from benchmarks import command
from benchmarks.scale import power, read_cells
from benchmarks.tables import scale_tables
from tests.conftest import DATA_ROOT, ROOT

TABLES = """
arguments: --config smoke --output_dir unused --tracking.mode disabled
tables:
  image size:
    16x16: --data.size 16
  processes, 32 images a step:
    "2": --training.batch_size 16
"""


def row(pixels, speed, table="image size"):
    facts = {"table": table, "name": str(pixels), "parameters": 700_000.0, "operations_per_image": 200_000.0 * pixels}
    return {**facts, "processes": 1, "pixels": pixels, "images_per_second": speed, "peak_gibibytes": 1.234}


def test_the_power_of_a_trend():
    rows = [row(pixels, 1e6 * pixels**-1.5) for pixels in (256.0, 1024.0, 4096.0)]
    assert power(rows, "pixels", "images_per_second") == pytest.approx(-1.5)
    page = scale_tables([*rows, row(256.0, 10.0, "width")])
    assert "images/s ~ pixels^-1.50; FLOP an image ~ pixels^1.00" in page
    assert page.count("peak memory, GiB") == 2
    assert "| 256.0 | 0.70 M | 51.2 | 10 | 1.536 | 1.23 |" in page


def test_the_tables_that_ship_are_read():
    cells = read_cells(ROOT / "benchmarks" / "configs" / "scale.yaml", "data")
    assert cells[0].table == "image size"
    assert cells[0].processes is None
    assert [cell.processes for cell in cells if cell.table.startswith("processes")] == [1, 2]


@pytest.mark.parametrize("content", ["tables: 3", "arguments: x\ntables:\n  processes:\n    many: y\n", "["])
def test_tables_that_cannot_be_read(tmp_path, content):
    (tmp_path / "tables.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"tables.yaml cannot be read .*; benchmarks/configs/scale.yaml shows how"):
        read_cells(tmp_path / "tables.yaml", "data")


@pytest.mark.slow
def test_cells_are_measured_in_processes_of_their_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "tables.yaml").write_text(TABLES, encoding="utf-8")
    options = [
        "--tables",
        tmp_path / "tables.yaml",
        "--data_root",
        DATA_ROOT,
        "--output_dir",
        tmp_path,
        "--seconds",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "scale", *map(str, options), "--rounds", "1"])
    command.main()
    assert "| 16x16 |" in capsys.readouterr().out
    rows = json.loads((tmp_path / "scale.json").read_text(encoding="utf-8"))["rows"]
    assert [each["processes"] for each in rows] == [1, 2]
    assert all(each["images_per_second"] > 1 and each["peak_gibibytes"] > 0.1 for each in rows)
