"""What the tests found that break runs and commands on purpose, as `docs/reliability.md`: see `make soak`."""

import json
import os
import sys
from pathlib import Path

from denoiser.evaluation.markdown import markdown_table

HEADERS = {
    "kills": ["runs of", "seed", "kills", "runs that ended as if not killed"],
    "faults": ["what fails", "seed", "writes that failed", "checkpoints that were not written for it"],
    "input": ["command", "its one line, with exit status 2"],
}


def record(section: str, *row: object) -> None:
    """Note a row of a table, where a run of the tests is asked to."""
    if path := os.environ.get("RELIABILITY"):
        with Path(path).open("a") as file:
            file.write(json.dumps([section, [str(cell) for cell in row]]) + "\n")


def page(noted: str, text: str) -> str:
    """Return the page with its tables replaced by those of the rows that were noted."""
    rows: dict[str, list[list[str]]] = {section: [] for section in HEADERS}
    for line in noted.splitlines():
        section, row = json.loads(line)
        rows[section].append([cell.replace("|", "\\|") for cell in row])
    for section, headers in HEADERS.items():
        before, rest = text.split(f"<!-- {section} -->\n")
        _, after = rest.split("\n<!-- end -->\n", 1)
        table = markdown_table(headers, sorted(rows[section]))
        text = f"{before}<!-- {section} -->\n{table}\n<!-- end -->\n{after}"
    return text


if __name__ == "__main__":
    target = Path(__file__).parents[1] / "docs" / "reliability.md"
    target.write_text(page(Path(sys.argv[1]).read_text(), target.read_text()))
