"""A live request as policies see it, and what a client's hints must be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from policies import vllm_view
from policies.vllm_view import HINTS, NO_HINTS, Hints, LiveRequest, MonotonicClock, Views, read_hints


def vllm_request(**changed: Any) -> Any:
    fields = {
        "request_id": "a",
        "arrival_time": 2.0,
        "num_prompt_tokens": 10,
        "num_computed_tokens": 4,
        "max_tokens": 30,
        "_output_token_ids": [],
    }
    return SimpleNamespace(**{**fields, **changed})


@pytest.mark.parametrize("extra_args", [None, {}, {"kv_transfer_params": {"x": 1}}])
def test_without_hints_there_are_defaults(extra_args: Any) -> None:
    assert read_hints(extra_args) == (NO_HINTS, [])


def test_all_hints() -> None:
    given = {"expected_output_tokens": 12.0, "deadline_s": 3, "tenant": "t", "tier": "gold", "class_name": "chat"}
    assert read_hints(given) == (Hints(12, 3.0, "t", "gold", "chat"), [])
    assert set(given) == set(HINTS)


def test_the_tier_is_the_tenant_where_none_is_given() -> None:
    assert read_hints({"tenant": "premium"})[0].tier == "premium"
    assert read_hints({"tier": "gold"})[0] == Hints(tier="gold")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("expected_output_tokens", value) for value in (0, -3, 2.5, "12", True, float("nan"), float("inf"), [1], {})),
        *(("deadline_s", value) for value in (0, -1.0, "3", False, float("nan"), float("inf"), 1e300, None)),
        *(("tenant", value) for value in ("", "  ", 3, ["a"], None)),
    ],
)
def test_an_invalid_hint_is_left_out_and_told(key: str, value: Any) -> None:
    hints, problems = read_hints({key: value, "tier": "gold"})
    assert hints == Hints(tier="gold")
    assert len(problems) == 1
    assert problems[0].startswith(f"{key} is ")
    assert HINTS[key] in problems[0]


def test_a_misspelt_hint_is_told() -> None:
    assert read_hints({"expected_output_token": 3}) == (
        NO_HINTS,
        ["'expected_output_token' is no hint; did you mean 'expected_output_tokens'?"],
    )


def test_a_huge_value_is_told_briefly() -> None:
    assert len(read_hints({"tenant": ["x" * 10_000]})[1][0]) < 150


def test_the_counters_are_vllms_own() -> None:
    request = vllm_request()
    view = LiveRequest(request, 3, 7_000, 1, Hints(deadline_s=0.5))
    request.num_computed_tokens = 11
    request._output_token_ids.extend([1, 2])
    assert (view.num_computed_tokens, view.num_output_tokens, view.num_prompt_tokens) == (11, 2, 10)
    assert (view.priority, view.arrival_ns, view.deadline_ns) == (3, 7_000, 500_007_000)
    request.num_prompt_tokens, request.max_tokens = 20, 5
    view.renew()
    assert (view.num_prompt_tokens, view.max_tokens) == (20, 5)


def test_what_has_ended_keeps_its_counters_and_lets_go_of_the_rest() -> None:
    request = vllm_request(_output_token_ids=[1, 2, 3])
    view = LiveRequest(request, 0, 0, 1, NO_HINTS)
    view.end()
    request.num_computed_tokens = 99
    request._output_token_ids.clear()
    assert (view.num_computed_tokens, view.num_output_tokens) == (4, 3)
    assert view.request is not request


def test_arrivals_are_on_the_monotonic_clock_and_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    day_ns, running_ns = 1_700_000_000_000_000_000, 5_000_000_000
    clock_now = {"day": day_ns, "running": running_ns}
    monkeypatch.setattr(vllm_view.time, "time_ns", lambda: clock_now["day"])
    monkeypatch.setattr(vllm_view.time, "monotonic_ns", lambda: clock_now["running"])
    clock = MonotonicClock()
    assert clock.now_ns() == running_ns
    assert clock.arrival_ns(day_ns / 1e9 - 1.0) == pytest.approx(running_ns - 1_000_000_000, abs=1000)
    clock_now["day"] += 300_000  # the clocks drift a little: the same arrival stays where it was
    assert clock.arrival_ns(day_ns / 1e9 - 1.0) == pytest.approx(running_ns - 1_000_000_000, abs=1000)
    clock_now["day"] -= 3_600_000_000_000  # the clock is set back by an hour
    arrived = clock.arrival_ns(clock_now["day"] / 1e9 - 1.0)
    assert arrived == pytest.approx(running_ns - 1_000_000_000, abs=1000)
    assert clock.arrival_ns(clock_now["day"] / 1e9 + 60.0) == running_ns, "never in the future"


def test_views_are_put_together_as_far_as_they_are_looked_at() -> None:
    asked: list[int] = []

    def requests() -> Any:
        for number in range(5):
            asked.append(number)
            yield SimpleNamespace(view=number)

    class Again:
        def __iter__(self) -> Any:
            return requests()

    views = Views(Again(), 5, head=None)
    assert len(views) == 5
    assert next(iter(views)) == 0  # type: ignore[comparison-overlap]
    assert asked == [0]
    assert list(views) == [0, 1, 2, 3, 4]  # type: ignore[comparison-overlap]
    asked.clear()
    assert (views[3], views[-1], list(views[1:3])) == (3, 4, [1, 2])  # type: ignore[comparison-overlap]
    assert asked == [0, 1, 2, 3, 4], "once for all further looks"
    asked.clear()
    with_head: Any = Views(Again(), 5, head=0)  # type: ignore[arg-type]
    assert with_head[0] == 0
    assert asked == []
