"""``engine.vllm_version``: what it takes, and what it says where it takes none."""

from __future__ import annotations

import pytest

from sim.scenario.vllm_version import version_of, version_problem


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0.32.0", (0, 32, 0)), ("v0.15", (0, 15, 0)), ("0.10.1.post1", (0, 10, 1)), ("0.14.0rc2", (0, 14, 0))],
)
def test_versions_are_read_as_numbers(text: str, numbers: tuple[int, int, int]) -> None:
    assert version_of(text) == numbers
    assert version_problem(text) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [("0.8.5", "older than 0.9.0"), ("0.33.0", "newer than 0.32.0"), ("latest", "not a version of vLLM such as")],
)
def test_other_versions_are_refused(text: str, says: str) -> None:
    assert says in (version_problem(text) or "")


def test_versions_order_as_numbers_not_as_text() -> None:
    assert version_of("0.9.2") < version_of("0.10.0") < version_of("0.32.0")
