"""docs/requirements.md names only tests and files that exist, and claims nothing without naming one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "requirements.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if re.search(r"\| (done|partly|not yet) \|", line)]
REFERENCES = sorted(set(re.findall(r"`((?:tests|scenarios|notebooks|docs)/[^`]+)`", PAGE)))


@pytest.mark.parametrize("reference", REFERENCES)
def test_reference_exists(reference: str) -> None:
    path, _, name = reference.partition("::")
    assert (ROOT / path).is_file()
    if name:
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)


def test_what_is_claimed_names_what_shows_it() -> None:
    claimed = [row for row in ROWS if "| not yet |" not in row]
    assert len(claimed) > 40
    assert [row for row in claimed if not re.search(r"`(tests|scenarios)/", row)] == []


def test_every_capability_has_its_row() -> None:
    ids = re.findall(r"^\| ([EPF]\d+) \|", PAGE, re.MULTILINE)
    assert ids == [f"{kind}{n}" for kind, last in (("E", 25), ("P", 13), ("F", 14)) for n in range(1, last + 1)]
