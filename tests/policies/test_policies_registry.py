"""Names, parameters, and the messages for wrong ones."""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

import policies
from policies.base import Policy, PolicyError, Predictor, ReplicaView, RequestView, RoutedRequest
from policies.parameters import REQUIRED, matches, type_text
from policies.predictors import Exact, MaxTokens, Noisy
from policies.registry import (
    POLICIES,
    PREDICTORS,
    ROUTERS,
    build_policy,
    build_predictor,
    build_router,
    describe_policies,
    describe_predictors,
    describe_routers,
)
from policies.routing import PowerOfTwo


@dataclass(kw_only=True)
class Mine(Policy):
    name = "mine"
    summary = "by parity"
    divisor: int
    mode: Literal["up", "down"] = "up"
    extra: list[int] = field(default_factory=list, metadata={"help": "no effect"})

    def rank(self, request: RequestView, now_ns: int) -> int:
        return request.num_prompt_tokens % self.divisor


class Plain(Policy):
    """Not a dataclass: its constructor's arguments are its parameters."""

    name = "plain"
    summary = "plain"

    def __init__(self, predictor: Predictor, step: int = 3) -> None:
        self.predictor = predictor
        self.step = step

    def rank(self, request: RequestView, now_ns: int) -> int:
        return self.step


class Picky(Plain):
    name = "picky"

    def __init__(self) -> None:
        raise ValueError("never satisfied")


class Unranked(Policy):
    name = "unranked"


class Nameless(Policy):
    def rank(self, request: RequestView, now_ns: int) -> int:
        return 0


class LastRouter:
    name: ClassVar[str] = "last"
    summary: ClassVar[str] = "the last"

    def choose(self, request: RoutedRequest, replicas: Sequence[ReplicaView], now_ns: int) -> int:
        return len(replicas) - 1


NOT_A_CLASS = 5


def policy(name: str, **params: Any) -> Policy:
    return build_policy(name, params, MaxTokens())


def test_every_name_builds_with_its_defaults() -> None:
    assert list(POLICIES) == [
        "fcfs", "priority", "sjf", "srtf", "throughput", "hybrid", "tiered", "fair", "deadline", "adaptive", "packed",
    ]  # fmt: skip
    for name in POLICIES:
        assert policy(name).name == name
    for name in PREDICTORS:
        assert build_predictor(name, {}, true_output_tokens=None, seed=0).name == name
    for name in ROUTERS:
        assert build_router(name, {}, seed=0).name == name


def test_the_predictor_is_handed_over() -> None:
    predictor = MaxTokens()
    assert build_policy("srtf", {}, predictor).predictor is predictor
    assert not hasattr(build_policy("fcfs", {}, predictor), "predictor")


def test_predictors_get_truth_and_seed() -> None:
    exact = build_predictor("exact", {}, true_output_tokens=len, seed=3)
    assert isinstance(exact, Exact)
    assert exact.true_output_tokens is len
    noisy = build_predictor("noisy", {"sigma": 1}, true_output_tokens=len, seed=3)
    assert isinstance(noisy, Noisy)
    assert (noisy.seed, noisy.sigma) == (3, 1)
    router = build_router("power_of_two", {}, seed=9)
    assert isinstance(router, PowerOfTwo)
    assert router.seed == 9


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("srft", {}, "unknown policy 'srft'; did you mean 'srtf'? (known: fcfs, "),
        (
            "hybrid",
            {"latency_wait": 1},
            "no parameter 'latency_wait'; did you mean 'latency_weight'? (its parameters are ",
        ),
        ("fcfs", {"x": 1}, "policy fcfs has no parameter 'x' (it has none)"),
        ("sjf", {"predictor": "exact"}, "no parameter 'predictor'"),
        ("sjf", {"_weight": 1}, "no parameter '_weight'"),
        ("hybrid", {"latency_weight": "0.5"}, "latency_weight is '0.5', but it must be float"),
        ("hybrid", {"latency_weight": True}, "latency_weight is True, but it must be float"),
        ("hybrid", {"latency_weight": 7}, "latency_weight is 7, but it must be between 0 and 1"),
        ("srtf", {"preemption_margin_tokens": 1.5}, "preemption_margin_tokens is 1.5, but it must be int"),
        ("tiered", {"tiers": "premium"}, "tiers is 'premium', but it must be list[str]"),
        ("tiered", {"shares": {"premium": "60 %"}}, "but it must be dict[str, float] | null"),
        ("fair", {"weights": {1: 2.0}}, "but it must be dict[str, float]"),
        ("nowhere_at_all:X", {}, "cannot import 'nowhere_at_all': ModuleNotFoundError"),
        ("policies.sjf:Sfj", {}, "'policies.sjf' has no 'Sfj'; did you mean 'Sjf'?"),
        (f"{__name__}:Mine", {}, "parameter 'divisor' is missing (int)"),
        (f"{__name__}:Mine", {"divisor": 2, "mode": "sideways"}, "mode is 'sideways'"),
        (f"{__name__}:Plain", {"stop": 1}, "no parameter 'stop'; did you mean 'step'?"),
        (f"{__name__}:Plain", {"step": "1"}, "step is '1', but it must be int"),
        (f"{__name__}:Picky", {}, "Picky: never satisfied"),
        (f"{__name__}:Unranked", {}, "does not define rank"),
        (f"{__name__}:Nameless", {}, "must have a class attribute 'name'"),
        (f"{__name__}:NOT_A_CLASS", {}, "is not a class with a method 'rank'"),
        ("policies.routing:RoundRobin", {}, "is not a class with a method 'rank'"),
    ],
)
def test_what_is_wrong_is_said(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        build_policy(name, params, MaxTokens())
    assert message in str(caught.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(PolicyError) as caught:
        policy("hybrid", latency_wait=1, output_weight="x")
    assert "latency_wait" in str(caught.value)
    assert "output_weight is 'x'" in str(caught.value)


def test_unknown_predictors_and_routers() -> None:
    with pytest.raises(PolicyError, match="unknown predictor 'exat'; did you mean 'exact'"):
        build_predictor("exat", {}, true_output_tokens=None, seed=0)
    with pytest.raises(PolicyError, match="predictor noisy has no parameter 'seed'"):
        build_predictor("noisy", {"seed": 4}, true_output_tokens=None, seed=0)
    with pytest.raises(PolicyError, match="unknown router 'roundrobin'; did you mean 'round_robin'"):
        build_router("roundrobin", {}, seed=0)


def test_a_users_own_by_module_and_class() -> None:
    mine = policy(f"{__name__}:Mine", divisor=3, extra=[1])
    assert isinstance(mine, Mine)
    assert (mine.divisor, mine.extra) == (3, [1])
    plain = policy(f"{__name__}:Plain", step=8)
    assert isinstance(plain, Plain)
    assert (plain.step, type(plain.predictor)) == (8, MaxTokens)
    assert build_router(f"{__name__}:LastRouter", {}, seed=0).name == "last"


def test_entry_points_extend_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("mine", f"{__name__}:Mine", "simrun.policies"),
        EntryPoint("broken", "nowhere_at_all:X", "simrun.policies"),
        EntryPoint("fcfs", f"{__name__}:Mine", "simrun.policies"),
    ]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [p for p in points if p.group == group])
    assert isinstance(policy("mine", divisor=2), Mine)
    assert type(policy("fcfs")) is POLICIES["fcfs"], "built-in names stay"
    with pytest.raises(PolicyError, match="cannot load 'nowhere_at_all:X': ModuleNotFoundError"):
        policy("broken")
    with pytest.raises(PolicyError, match="did you mean 'mine'"):
        policy("mien")
    rows = {row.name: row for row in describe_policies()}
    assert rows["broken"].summary.startswith("cannot be used: ")
    assert rows["mine"].parameters[0].default is REQUIRED
    assert len(rows) == len(POLICIES) + 2


def test_descriptions_tell_every_parameter() -> None:
    rows = {row.name: row for row in describe_policies()}
    assert list(rows) == list(POLICIES)
    assert (rows["fcfs"].stock_mode, rows["priority"].stock_mode, rows["sjf"].stock_mode) == ("fcfs", "priority", None)
    assert [name for name, row in rows.items() if row.not_live_because] == ["packed"]
    assert rows["srtf"].uses_predictor
    weight = next(item for item in rows["hybrid"].parameters if item.name == "latency_weight")
    assert (weight.type_text, weight.default) == ("float", 0.5)
    for row in [*rows.values(), *describe_predictors(), *describe_routers()]:
        assert row.summary
        assert len(row.summary) <= 90
        for parameter in row.parameters:
            assert parameter.help, f"{row.name}.{parameter.name} has no help"
            assert not parameter.name.startswith("_")


def test_types_as_users_read_and_write_them() -> None:
    assert type_text(dict[str, float] | None) == "dict[str, float] | null"
    assert matches(None, int | None)
    assert matches(3, float)
    assert not matches(3.0, int)
    assert not matches(False, int)
    assert matches({"a": 1}, dict)
    assert matches([1, "a"], list)
    assert not matches([1, "a"], list[int])
    assert matches(object(), Any)


def test_the_package_imports_the_standard_library_only() -> None:
    for path in Path(policies.__file__).parent.glob("*.py"):
        if path.name == "vllm_plugin.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] in sys.stdlib_module_names | {"policies"}, f"{path.name} imports {name}"


@pytest.mark.parametrize("name", ["lcfs", "ljf", "edf", "round-robin"])
def test_an_opposite_is_not_suggested(name: str) -> None:
    with pytest.raises(PolicyError) as raised:
        build_policy(name, {}, MaxTokens())
    assert "did you mean" not in str(raised.value)
