"""The files of a prepared set: `images.npy`, `labels.npy` if it has classes, and `set.json`."""

import hashlib
import json
from pathlib import Path
from typing import Any

IMAGES, LABELS, FACTS = "images.npy", "labels.npy", "set.json"
VERSION = 1


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Write `set.json`, with a checksum of its own."""
    facts = {**facts, "checksum": _checksum(facts)}
    (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def read_facts(folder: Path) -> dict[str, Any]:
    """Return the content of a prepared set's `set.json`; `ValueError` unless it is as it was written."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        if facts.get("version") != VERSION:
            raise ValueError(f"its version is {facts.get('version')}, not {VERSION}")
        if facts.pop("checksum", None) != _checksum(facts):
            raise ValueError("its checksum differs")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{folder / FACTS} is not as it was prepared ({' '.join(str(error).split())}); delete the folder, and "
            "prepare it anew"
        ) from error
    return {**facts, "shape": tuple(facts["shape"]), "class_names": tuple(facts["class_names"])}


def _checksum(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
