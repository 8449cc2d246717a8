"""What a policy says of its ranks while requests decode (``decode_ranks``) holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policies_fakes import SECOND, decoding, exact_for, limits

from policies.base import DecodeRanks
from policies.registry import POLICIES, build_policy

DECLARED = sorted(name for name, kind in POLICIES.items() if kind.decode_ranks is not DecodeRanks.MOVE)
VIEWS = st.lists(
    st.tuples(
        st.integers(1, 3000),  # prompt
        st.integers(0, 60),  # outputs so far; 0: the first is in flight
        st.integers(1, 80),  # prediction
        st.integers(0, 3),  # priority
        st.integers(0, 100),  # arrival
    ),
    min_size=2,
    max_size=8,
)


def test_policies_that_say_something() -> None:
    assert DECLARED == ["fcfs", "packed", "priority", "sjf", "throughput"]


@pytest.mark.parametrize("name", DECLARED)
@given(rows=VIEWS, steps=st.lists(st.integers(1, 30), max_size=4))
def test_ranks_of_decoding_requests_stay_as_said(
    name: str, rows: list[tuple[int, int, int, int, int]], steps: list[int]
) -> None:
    views = []
    for row, (prompt, outputs, expected, priority, arrival_ns) in enumerate(rows):
        view = decoding(f"r{row}", prompt, outputs, expected, priority=priority, arrival_ns=arrival_ns)
        view.num_computed_tokens = prompt + max(outputs - 1, 0)
        views.append(view)
    policy = build_policy(name, {}, exact_for(*views))
    policy.bind(limits())
    at_first = [policy.rank(view, SECOND) for view in views]
    gone = 0
    for more in [0, *steps]:
        gone += more
        for view in views:
            view.num_output_tokens += more
            view.num_computed_tokens += more
        assert [policy.rank(view, SECOND * (1 + gone)) for view in views] == at_first
