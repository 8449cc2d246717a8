"""What a policy's class says of itself holds for that class alone."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from policies_fakes import View, exact_for

from policies.base import DecodeRanks, Feedback, Policy, RankChanges, declared
from policies.registry import POLICIES, build_policy
from policies.sjf import Sjf

DEFAULTS: dict[str, Any] = {
    "rank_changes": RankChanges.ALWAYS,
    "decode_ranks": DecodeRanks.MOVE,
    "feedback": Feedback.EACH,
}


class LastFirst(Sjf):
    """Longest first: says nothing."""

    def rank(self, request: Any, now_ns: int) -> int:
        return -super().rank(request, now_ns)


class LastFirstAndSure(LastFirst):
    rank_changes: ClassVar[RankChanges] = RankChanges.NEVER
    decode_ranks: ClassVar[DecodeRanks] = DecodeRanks.STAY
    feedback: ClassVar[Feedback] = Feedback.FIRST


def test_a_derived_class_is_asked_every_time_until_it_says_so_too() -> None:
    predictor = exact_for(View("a"))
    quiet, sure = LastFirst(predictor=predictor), LastFirstAndSure(predictor=predictor)
    assert {name: declared(quiet, name, default) for name, default in DEFAULTS.items()} == DEFAULTS
    assert [declared(sure, name, default) for name, default in DEFAULTS.items()] == [
        *(RankChanges.NEVER, DecodeRanks.STAY, Feedback.FIRST),
    ]


def test_a_statement_of_another_kind_is_none() -> None:
    class Confused(Policy):
        decode_ranks = "stay"  # type: ignore[assignment]

    assert declared(Confused(), "decode_ranks", DecodeRanks.MOVE) is DecodeRanks.MOVE


@pytest.mark.parametrize("name", POLICIES)
def test_every_built_in_policy_says_when_its_ranks_move(name: str) -> None:
    policy = build_policy(name, {}, exact_for(View("a")))
    assert "rank_changes" in vars(type(policy))
    assert declared(policy, "rank_changes", RankChanges.ALWAYS) == type(policy).rank_changes
