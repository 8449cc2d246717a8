"""Bars that are known to be missed, with the error reached: ``--check`` lets no set get worse than that.

``accuracy_known.json`` has them, written by ``--write-known`` when the pages are made anew.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.accuracy_scores import Score

FILE = Path(__file__).with_suffix(".json")
STEP = 0.001


def known_misses(file: Path = FILE) -> Mapping[tuple[str, str], float]:
    """(set, metric) -> the error reached."""
    return {(each["set"], each["metric"]): each["reached"] for each in json.loads(file.read_text(encoding="utf-8"))}


def write_known(found: Iterable[Score], file: Path) -> None:
    """One line for each bar that is missed, rounded up to a tenth of a percent."""
    lines = [
        json.dumps({"set": each.bar.group, "metric": each.bar.label, "reached": round(_up(each.scored), 3)})
        for each in found
        if not each.met
    ]
    file.write_text("[\n" + ",\n".join(f"  {line}" for line in lines) + "\n]\n", encoding="utf-8")


def _up(error: float) -> float:
    return math.ceil(error / STEP - 1e-9) * STEP
