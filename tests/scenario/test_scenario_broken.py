"""Every scenario in tests/broken, and exactly what is said about it.

``UPDATE_SNAPSHOTS=1 pytest tests/scenario`` writes the expected texts anew.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from sim.checks.all_checks import check_all
from sim.checks.loading import load_scenario
from sim.errors import InputError
from sim.workload.build_table import build_workload

BROKEN = Path(__file__).parents[1] / "broken"
CASES = sorted(path.name for path in BROKEN.glob("*.yaml"))


def options(name: str) -> tuple[list[str], int | None]:
    """Overrides and seed from a first line ``# options: --set a.b=c --seed N``."""
    first = (BROKEN / name).read_text().partition("\n")[0]
    words = shlex.split(first.removeprefix("# options: ")) if first.startswith("# options: ") else []
    given = list(zip(words[::2], words[1::2], strict=True))
    seeds = [int(value) for option, value in given if option == "--seed"]
    return [value for option, value in given if option == "--set"], seeds[-1] if seeds else None


def load_and_check(name: str, overrides: list[str], seed: int | None) -> None:
    loaded = load_scenario(name, overrides, seed)
    check_all(loaded)
    build_workload(loaded.scenario.workload, loaded.scenario.seed, loaded.base_dir)


@pytest.mark.parametrize("name", CASES)
def test_broken_scenario(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BROKEN)
    overrides, seed = options(name)
    with pytest.raises(InputError) as caught:
        load_and_check(name, overrides, seed)
    said = str(caught.value).replace(str(BROKEN), "CWD") + "\n"
    expected = (BROKEN / name).with_suffix(".txt")
    if os.environ.get("UPDATE_SNAPSHOTS"):
        expected.write_text(said)
    assert said == expected.read_text()


@pytest.mark.parametrize("path", sorted(BROKEN.glob("*.txt")), ids=lambda path: path.stem)
def test_messages_are_for_users(path: Path) -> None:
    """One line per problem with a place, and nothing of the libraries behind it."""
    text = path.read_text()
    assert path.with_suffix(".yaml").exists(), "an expected text without a scenario"
    for line in text.splitlines():
        assert re.match(r"([\w.]+:\d+(:\d+)?|--set .*?|--seed .*?|[\w.]+): \S", line), line
    for leak in ("Input should", "pydantic", "ruamel", "Traceback", "type=", "NoneType", "validation error"):
        assert leak not in text


def test_there_are_enough() -> None:
    assert len(CASES) >= 25
