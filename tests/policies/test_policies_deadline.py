"""Earliest due first, and what becomes of the hopeless."""

from __future__ import annotations

from typing import Any

import pytest
from policies_fakes import SECOND, View

from policies.base import PolicyError
from policies.deadline import Deadline


def order(policy: Deadline, now_ns: int, *views: View) -> str:
    return "".join(v.request_id for v in sorted(views, key=lambda v: (policy.rank(v, now_ns), v.arrival_ns)))


def test_late_then_soon_late_then_the_rest_then_those_without() -> None:
    late, soon = View("l", 0, deadline_ns=4 * SECOND), View("s", 1, deadline_ns=11 * SECOND)
    calm, free = View("c", 2, deadline_ns=90 * SECOND), View("f", 0)
    assert order(Deadline(), 10 * SECOND, free, calm, soon, late) == "lscf"


def test_default_due_instants_come_from_the_slo() -> None:
    policy = Deadline(ttft_slo_ms=500.0, e2el_slo_ms=5000.0)
    view = View("a", SECOND)
    assert policy.rank(view, 0) == SECOND + SECOND // 2, "no token yet: the first token is due"
    view.num_output_tokens = 1
    assert policy.rank(view, 0) == 6 * SECOND
    urgent = View("b", SECOND, deadline_ns=SECOND + 7)
    assert policy.rank(urgent, 0) == SECOND + 7, "its own deadline is earlier"
    relaxed = View("c", SECOND, deadline_ns=60 * SECOND, num_output_tokens=1)
    assert policy.rank(relaxed, 0) == 60 * SECOND, "its own deadline goes before e2el_slo_ms"


def test_after_its_first_token_a_request_keeps_its_place() -> None:
    policy = Deadline(ttft_slo_ms=500.0, give_up_after_ms=0.0)
    evicted, newcomer = View("a", 0, num_output_tokens=3), View("b", SECOND)
    assert order(policy, 2 * SECOND - SECOND // 2 - 1, newcomer, evicted) == "ab"
    assert policy.next_change_ns(evicted, 0) is None, "its SLO is met: nothing to give up"


def test_the_hopeless_stay_in_front_by_default() -> None:
    hopeless, saveable = View("h", 0, deadline_ns=1), View("s", 0, deadline_ns=100 * SECOND)
    assert order(Deadline(), 99 * SECOND, saveable, hopeless) == "hs"
    assert Deadline().next_change_ns(hopeless, 0) is None


def test_given_up_goes_behind_everybody_at_the_exact_instant() -> None:
    policy = Deadline(give_up_after_ms=2000.0)
    hopeless, saveable, free = View("h", 0, deadline_ns=SECOND), View("s", 0, deadline_ns=9 * SECOND), View("f", 0)
    assert policy.next_change_ns(hopeless, 0) == 3 * SECOND
    assert order(policy, 3 * SECOND - 1, free, saveable, hopeless) == "hsf"
    assert order(policy, 3 * SECOND, free, saveable, hopeless) == "sfh"
    assert policy.next_change_ns(hopeless, 3 * SECOND) is None


@pytest.mark.parametrize("params", [{"ttft_slo_ms": 0.0}, {"e2el_slo_ms": float("inf")}, {"give_up_after_ms": -1.0}])
def test_bad_parameters_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match=next(iter(params))):
        Deadline(**params)
