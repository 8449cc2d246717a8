"""Versions of vLLM: what ``engine.vllm_version`` takes, and how rules that differ between versions ask for it."""

from __future__ import annotations

import re

DEFAULT_VERSION = "0.32.0"
"""The version whose scheduler, defaults and command line the project follows."""
OLDEST_VERSION = "0.9.0"
"""The first whose V1 engine has all that is modelled here."""
_FORM = re.compile(r"v?(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?(?:\.post\d+|rc\d+)?", re.ASCII)

Version = tuple[int, int, int]


def version_of(text: str) -> Version:
    """Read ``0.32.0``, ``v0.32`` or ``0.10.1.post1`` as numbers to compare: (0, 32, 0). Raises ValueError."""
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"not a version of vLLM such as {DEFAULT_VERSION}")
    major, minor, patch = match.groups(default="0")
    return int(major), int(minor), int(patch)


def version_problem(text: str) -> str | None:
    """What is wrong with ``text`` as the version of a simulated engine; None = nothing."""
    try:
        version = version_of(text)
    except ValueError as error:
        return f"'{text}' is {error}"
    if version < version_of(OLDEST_VERSION):
        return f"'{text}' is older than {OLDEST_VERSION}, the first version whose engine is modelled"
    if version > version_of(DEFAULT_VERSION):
        return f"'{text}' is newer than {DEFAULT_VERSION}, the last version that is known here"
    return None
