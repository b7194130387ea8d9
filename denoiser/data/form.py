"""The files of a prepared set: `images.npy`, `labels.npy` if it has classes, and `set.json`."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

IMAGES, LABELS, FACTS = "images.npy", "labels.npy", "set.json"
VERSION = 2
OWN_NAME = re.compile(r"-[0-9a-f]{10}$")  # of a folder that `prepare` names


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Write `set.json`, with a checksum of its own."""
    facts = {"checksum": _checksum(facts), **facts}  # first, where a file that is cut short has it
    (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def is_prepared(folder: Path) -> bool:
    """Return whether a folder is a prepared set, and no folder of pictures with a `set.json` of another kind."""
    return (folder / IMAGES).is_file() and _has_checksum(folder)


def read_facts(folder: Path) -> dict[str, Any]:
    """Return the content of a prepared set's `set.json`; `ValueError` unless it is as it was written."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        if facts.get("version") != VERSION:
            raise ValueError(f"its version is {facts.get('version')}, not {VERSION}")
        if facts.pop("checksum", None) != _checksum(facts):
            raise ValueError("its checksum differs")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        if not OWN_NAME.search(folder.name) and not _has_checksum(folder):
            raise ValueError(f"{folder} is no prepared set ({reason}); give the folder of one") from error
        raise ValueError(
            f"{folder / FACTS} is not as it was prepared ({reason}); delete the folder, and prepare it anew"
        ) from error
    return {**facts, "shape": tuple(facts["shape"]), "class_names": tuple(facts["class_names"])}


def _has_checksum(folder: Path) -> bool:
    try:
        return b'"checksum"' in (folder / FACTS).read_bytes()
    except OSError:
        return False


def _checksum(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
