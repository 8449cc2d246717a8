"""Integer tables and rates: exactness, monotony, and counts beyond the table."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.latency.base import StepShape
from sim.latency.tables import MAX_TABLE, AttentionRates, Floats, Rate, Table, TabulatedCost


def linear(counts: Floats) -> Floats:
    return counts * 1e-6


@given(ns=st.floats(1e-9, 1e6), count=st.integers(0, 2**33))
def test_rate_is_exact_to_nine_digits(ns: float, count: int) -> None:
    true = Fraction(ns) * count
    assert true * (1 - Fraction(1, 2**29)) - 1 <= Rate(ns).ns(count) <= true * (1 + Fraction(1, 2**29))


@given(ns=st.floats(1e-9, 1e6), factor=st.floats(1.0, 2.0), count=st.integers(0, 2**33), more=st.integers(0, 2**20))
def test_rate_grows_with_price_and_count(ns: float, factor: float, count: int, more: int) -> None:
    assert Rate(ns).ns(count) <= Rate(ns * factor).ns(count + more)


def test_free_is_free() -> None:
    assert Rate(0.0).ns(10**12) == 0


def test_next_to_free_is_no_overflow() -> None:
    assert Rate(1e-320).ns(10**12) == 0


def test_endless_times_stay_integers() -> None:
    assert Table(lambda counts: counts * 1e300, 2, least_ns=1).values == [1, 10**18, 10**18]
    assert Table(lambda counts: counts * 1e200 * 1e200, 2, least_ns=1).values[1:] == [10**18, 10**18]


def test_table_rounds_and_never_falls() -> None:
    dip = Table(lambda counts: np.where(counts == 2, 1e-9, 5e-9), 4, least_ns=0)
    assert dip.values == [5, 5, 5, 5, 5]
    assert Table(linear, 3, least_ns=1).values == [1, 1000, 2000, 3000]


def test_counts_beyond_the_table_are_computed() -> None:
    table = Table(linear, 10**9, least_ns=1)
    assert len(table.values) == MAX_TABLE + 1
    assert table.ns(MAX_TABLE) == table.values[-1]
    assert table.ns(10**9) == 10**12
    falling = Table(lambda counts: np.where(counts > 8, 0.0, 1e-6), 8, least_ns=0)
    assert falling.ns(100) == 1000


def cost(rate_ns: float = 1.5, windows: Sequence[int | None] = (None,)) -> TabulatedCost:
    return TabulatedCost(
        tokens=Table(linear, 64, least_ns=1),
        sampled=Table(linear, 16, least_ns=0),
        attention=[AttentionRates(window, Rate(rate_ns), Rate(0.5), Rate(2.0)) for window in windows],
        swap=Rate(0.25),
        pipeline_stages=1,
        host_step_ns=100,
        host_request_ns=7,
    )


@given(
    decodes=st.integers(0, 200),
    context=st.integers(0, 2**40),
    steps=st.integers(0, 40),
    rate_ns=st.sampled_from([1e-4, 0.123456789, 1.0, 777.7]),
    windows=st.sampled_from([(None,), (128,), (None, 128), (1, None), (64, 4096, None)]),
)
def test_a_run_equals_its_steps_bit_for_bit(
    decodes: int, context: int, steps: int, rate_ns: float, windows: tuple[int | None, ...]
) -> None:
    model = cost(rate_ns, windows)
    run = model.decode_run_ns(decodes, context, steps)
    assert run.dtype == np.int64
    assert run.tolist() == [
        model.gpu_ns(StepShape(num_decodes=decodes, decode_context_tokens=context + i * decodes, num_sampled=decodes))
        for i in range(steps)
    ]


def test_terms_add_up() -> None:
    model = cost(1.0)
    shape = StepShape(
        num_prefills=1,
        num_prefill_tokens=10,
        prefill_context_tokens=20,
        prefill_attention_pairs=300,
        num_decodes=2,
        decode_context_tokens=50,
        num_sampled=3,
        swap_bytes=400,
    )
    assert model.gpu_ns(shape) == 12_000 + 3_000 + 50 + max(150, 40) + 100
    assert model.host_ns(shape) == 100 + 3 * 7
    assert model.empty_step_ns() == 100
    assert type(model.gpu_ns(shape)) is int


def test_the_larger_of_arithmetic_and_traffic_counts() -> None:
    model = cost()
    shape = StepShape(num_prefills=1, num_prefill_tokens=1, prefill_context_tokens=1000, prefill_attention_pairs=100)
    assert model.gpu_ns(shape) == 1_000 + 2_000


def test_an_empty_step_takes_at_least_a_nanosecond() -> None:
    assert cost().gpu_ns(StepShape()) == 1


@pytest.mark.parametrize("rows", [17, 1_000])
def test_more_rows_or_tokens_than_the_engine_allows_still_cost(rows: int) -> None:
    assert cost().gpu_ns(StepShape(num_prefills=1, num_prefill_tokens=rows, num_sampled=rows)) == 2 * rows * 1000
