"""For a parallel run, whose tests are collected by its workers: what ``tests/live/conftest.py`` says of a plain one.

And for a busy machine: no test of random examples fails because one of them took long.
"""

from __future__ import annotations

from importlib import util
from pathlib import Path

import pytest

LIVE = Path(__file__).parent / "live"

if util.find_spec("hypothesis") is not None:
    from hypothesis import settings

    settings.register_profile("patient", deadline=None)
    settings.load_profile("patient")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Nothing is left out in silence."""
    is_parallel = bool(getattr(config.option, "numprocesses", None))
    asked = [(config.invocation_params.dir / argument.split("::")[0]).resolve() for argument in config.args]
    if is_parallel and util.find_spec("vllm") is None and any(path in LIVE.parents for path in asked):
        terminalreporter.write_line("tests/live not collected: vllm is not installed in this environment")
