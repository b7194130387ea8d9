"""Write what the tests found into the tables of `docs/`: see `make soak`."""

import json
import os
import sys
from pathlib import Path

from pipelines.evaluation.markdown import markdown_table

HEADERS = {
    "kills": ["runs of", "seed", "kills", "runs that ended as if not killed"],
    "faults": ["what fails", "seed", "writes that failed", "checkpoints that were not written for it"],
    "input": ["command", "its one line, with exit status 2"],
    "environment": ["variable", "what happens"],
}
PAGES = {
    "kills": "reliability.md",
    "faults": "reliability.md",
    "input": "wrong_input.md",
    "environment": "environment.md",
}


def record(section: str, *row: object) -> None:
    """Note a row of a table, where a run of the tests is asked to."""
    if path := os.environ.get("RELIABILITY"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps([section, [str(cell) for cell in row]]) + "\n")


def rows_by_section(noted: str) -> dict[str, list[list[str]]]:
    """Return the rows that were noted, sorted, by the section they are for."""
    rows: dict[str, list[list[str]]] = {}
    for line in noted.splitlines():
        section, row = json.loads(line)
        rows.setdefault(section, []).append([cell.replace("|", "\\|") for cell in row])
    return {section: sorted(found) for section, found in rows.items()}


def with_table(text: str, section: str, rows: list[list[str]]) -> str:
    """Return a page with the table of a section replaced."""
    before, rest = text.split(f"<!-- {section} -->\n")
    _, after = rest.split("<!-- end -->\n", 1)
    return f"{before}<!-- {section} -->\n{markdown_table(HEADERS[section], rows)}\n<!-- end -->\n{after}"


if __name__ == "__main__":
    docs = Path(__file__).parents[1] / "docs"
    for section, rows in rows_by_section(Path(sys.argv[1]).read_text(encoding="utf-8")).items():
        target = docs / PAGES[section]
        target.write_text(with_table(target.read_text(encoding="utf-8"), section, rows), encoding="utf-8")
