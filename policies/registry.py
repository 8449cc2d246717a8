"""Policies, predictors and routers by name.

A name is built in, ``module:Class``, or an entry point in the group ``simrun.policies``,
``simrun.predictors`` or ``simrun.routers`` of an installed package.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from policies.adaptive import Adaptive
from policies.base import Policy, PolicyError, Predictor, Router
from policies.deadline import Deadline
from policies.fair import Fair
from policies.fcfs import Fcfs
from policies.hybrid import Hybrid
from policies.packed import Packed
from policies.parameters import Parameter, construct, misspelled, parameters_of, suggestion
from policies.predictors import ClassMean, Exact, Learned, MaxTokens, Noisy
from policies.priority import Priority
from policies.routing import (
    LeastKv,
    LeastOutstanding,
    PowerOfTwo,
    PrefixAffinity,
    RoundRobin,
    StickySession,
    VllmDp,
)
from policies.sjf import Sjf
from policies.srtf import Srtf
from policies.throughput import Throughput
from policies.tiered import Tiered


def _by_name(*classes: Any) -> Mapping[str, Any]:
    return MappingProxyType({cls.name: cls for cls in classes})


POLICIES: Mapping[str, type[Policy]] = _by_name(
    Fcfs, Priority, Sjf, Srtf, Throughput, Hybrid, Tiered, Fair, Deadline, Adaptive, Packed
)
PREDICTORS: Mapping[str, type[Predictor]] = _by_name(Exact, MaxTokens, ClassMean, Noisy, Learned)
ROUTERS: Mapping[str, type[Router]] = _by_name(
    RoundRobin, LeastOutstanding, LeastKv, PowerOfTwo, StickySession, PrefixAffinity, VllmDp
)

POLICY_SUPPLIED = ("predictor",)
PREDICTOR_SUPPLIED = ("true_output_tokens", "seed", "class_means")
ROUTER_SUPPLIED = ("seed",)


@dataclass(frozen=True, slots=True)
class Description:
    """One row of ``simrun policies``."""

    name: str
    summary: str
    parameters: list[Parameter]
    stock_mode: str | None = None
    """vLLM's own scheduling policy of that name, for policies that are one."""
    uses_predictor: bool = False
    not_live_because: str | None = None
    """Why a live vLLM cannot run it with default parameters; None where it can (and for predictors and routers)."""


def build_policy(name: str, params: Mapping[str, object], predictor: Predictor) -> Policy:
    """The policy ``name`` with ``params``. Each engine needs its own.

    Raises:
        PolicyError: an unknown name or parameter, or a value it cannot use.
    """
    cls = _resolve("policy", name, POLICIES)
    supplied: dict[str, object] = {"predictor": predictor}
    if not cls.uses_predictor:
        supplied = {key: value for key, value in supplied.items() if key in parameters_of(cls, ())}
    policy: Policy = construct(f"policy {name}", cls, params, supplied)
    return policy


def uses_predictor(name: str) -> bool:
    """Whether the policy ``name`` ranks by expected length. Raises PolicyError for an unknown name."""
    return bool(_resolve("policy", name, POLICIES).uses_predictor)


def build_predictor(
    name: str,
    params: Mapping[str, object],
    *,
    true_output_tokens: Callable[[str], int] | None,
    seed: int,
    class_means: Mapping[str, float] | None = None,
) -> Predictor:
    """The predictor ``name`` with ``params``.

    Args:
        true_output_tokens: true output length by request id; None where it is not known (live).
        seed: the scenario's seed, for predictors with errors.
        class_means: the workload's mean output length by class, where it is known.

    Raises:
        PolicyError: an unknown name or parameter, or a value it cannot use.
    """
    supplied = {"true_output_tokens": true_output_tokens, "seed": seed, "class_means": class_means}
    cls = _resolve("predictor", name, PREDICTORS)
    predictor: Predictor = construct(f"predictor {name}", cls, params, supplied)
    return predictor


def build_router(name: str, params: Mapping[str, object], *, seed: int) -> Router:
    """The router ``name`` with ``params``.

    Raises:
        PolicyError: an unknown name or parameter, or a value it cannot use.
    """
    cls = _resolve("router", name, ROUTERS)
    router: Router = construct(f"router {name}", cls, params, {"seed": seed})
    return router


def describe_policies() -> list[Description]:
    """All policies there are, built in and installed, with their parameters."""
    return [_describe_policy(name, cls) for name, cls in _all("policy", POLICIES)]


def describe_predictors() -> list[Description]:
    """All predictors there are."""
    return [_describe(name, cls, PREDICTOR_SUPPLIED) for name, cls in _all("predictor", PREDICTORS)]


def describe_routers() -> list[Description]:
    """All routers there are."""
    return [_describe(name, cls, ROUTER_SUPPLIED) for name, cls in _all("router", ROUTERS)]


# --- by name -------------------------------------------------------------------------------------

_PLURALS = MappingProxyType({"policy": "policies", "predictor": "predictors", "router": "routers"})
_METHODS = MappingProxyType({"policy": "rank", "predictor": "predict", "router": "choose"})


def _resolve(kind: str, name: str, built_in: Mapping[str, Any]) -> Any:
    if name in built_in:
        return built_in[name]
    if ":" in name:
        return _checked(kind, name, _import(kind, name))
    installed = _entry_points(kind)
    if name in installed:
        return _checked(kind, name, _load(kind, installed[name]))
    known = [*built_in, *installed]
    raise PolicyError(
        f"unknown {kind} {name!r}{misspelled(name, known)} (known: {', '.join(known)}; your own: module:Class)"
    )


def _import(kind: str, name: str) -> object:
    module_name, _, path = name.partition(":")
    try:
        found: object = importlib.import_module(module_name)
    except Exception as error:  # a user's module may fail in any way while it is imported
        hint = ""
        if isinstance(error, ModuleNotFoundError) and error.name == module_name.partition(".")[0]:
            hint = f"; put {error.name}.py beside the scenario, or its folder on PYTHONPATH"
        raise PolicyError(
            f"{kind} {name!r}: cannot import {module_name!r}: {type(error).__name__}: {error}{hint}"
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise PolicyError(f"{kind} {name!r}: {module_name!r} has no {path!r}{suggestion(part, dir(found))}")
        found = getattr(found, part)
    return found


def _entry_points(kind: str) -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=f"simrun.{_PLURALS[kind]}")}


def _load(kind: str, point: importlib.metadata.EntryPoint) -> object:
    try:
        return point.load()
    except Exception as error:  # as in _import
        raise PolicyError(
            f"{kind} {point.name!r}: cannot load {point.value!r}: {type(error).__name__}: {error}"
        ) from error


def _checked(kind: str, name: str, found: object) -> Any:
    method = _METHODS[kind]
    if not isinstance(found, type) or not callable(getattr(found, method, None)):
        raise PolicyError(f"{kind} {name!r} is not a class with a method {method!r}")
    if kind == "policy":
        if not issubclass(found, Policy):
            raise PolicyError(f"policy {name!r} must be a subclass of policies.base.Policy")
        if found.rank is Policy.rank:
            raise PolicyError(f"policy {name!r} does not define rank")
    if not isinstance(getattr(found, "name", None), str):
        raise PolicyError(f"{kind} {name!r} must have a class attribute 'name'")
    return found


# --- descriptions --------------------------------------------------------------------------------


def _all(kind: str, built_in: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from built_in.items()
    for name, point in sorted(_entry_points(kind).items()):
        if name not in built_in:
            try:
                yield name, _checked(kind, name, _load(kind, point))
            except PolicyError as error:
                yield name, error


def _describe(name: str, cls: Any, supplied: tuple[str, ...]) -> Description:
    if isinstance(cls, PolicyError):
        return Description(name, f"cannot be used: {cls}", [])
    return Description(name, getattr(cls, "summary", ""), list(parameters_of(cls, supplied).values()))


def _describe_policy(name: str, cls: Any) -> Description:
    row = _describe(name, cls, POLICY_SUPPLIED)
    if isinstance(cls, PolicyError):
        return row
    try:
        refusal = build_policy(name, {}, MaxTokens()).live_refusal()
    except PolicyError:  # it has parameters without a default
        refusal = cls.not_live_because
    return Description(name, row.summary, row.parameters, cls.stock_mode, cls.uses_predictor, refusal)
