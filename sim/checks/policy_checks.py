"""Checks of policy, predictor and router: that they exist and take their parameters."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

from policies.base import PolicyError
from policies.beside import import_beside
from policies.registry import build_policy, build_predictor, build_router
from sim.checks.findings import Findings
from sim.scenario.document import Path
from sim.scenario.loader import Parts
from sim.scenario.messages import dotted
from sim.scenario.schema import NamedSpec


def check_names(parts: Parts, findings: Findings) -> None:
    """Policy, predictor and router: that they exist and take their parameters."""
    if parts.engine is not None:
        policy = _build(
            findings,
            parts.base_dir,
            ("engine", "policy"),
            parts.engine.policy,
            lambda name, params: build_policy(
                name, params, build_predictor("exact", {}, true_output_tokens=lambda _: 1, seed=0)
            ),
        )
        _build(
            findings,
            parts.base_dir,
            ("engine", "predictor"),
            parts.engine.predictor,
            lambda name, params: build_predictor(name, params, true_output_tokens=lambda _: 1, seed=0),
        )
        if policy is not None and not policy.uses_predictor:
            findings.unused(parts.engine, ("engine",), "predictor", f"policy {policy.name} asks for no prediction")
    if parts.cluster is not None:
        _build(
            findings,
            parts.base_dir,
            ("cluster", "router"),
            parts.cluster.router,
            lambda name, params: build_router(name, params, seed=0),
        )


def _build(
    findings: Findings,
    folder: FilePath,
    path: Path,
    spec: str | NamedSpec,
    build: Callable[[str, dict[str, Any]], Any],
) -> Any:
    """What ``build`` makes of a spec, or None with a problem at the spec, its name or the parameter at fault.

    A file in ``folder``, the scenario's, that a ``module:Class`` names is imported first.
    """
    name, params = (spec, {}) if isinstance(spec, str) else (spec.name, spec.params)
    try:
        import_beside(str(path[-1]), name, folder)
        return build(name, params)
    except PolicyError as error:
        message = str(error)
    place = path if isinstance(spec, str) else (*path, "name")
    at_fault = [word for word in re.findall(r"\w+", message) if word in params]
    findings.problem((*path, at_fault[0]) if at_fault else place, f"`{dotted(path)}`: {message}")
    return None
