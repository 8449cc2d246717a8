"""Texts of parquet columns, which are put together without a string object per row."""

from __future__ import annotations

import random

import numpy as np
import pytest

from sim.results.columns import Named
from sim.results.parquet import _array


def test_numbers_as_ids_are_written_in_decimals() -> None:
    for numbers in ([], [0], [7], list(range(1_234)), [3, 9, 10, 99, 100, 12_345, 10**9, 10**17]):
        assert _array("request_id", np.array(numbers, dtype=np.int64)).to_pylist() == [str(each) for each in numbers]


@pytest.mark.parametrize("names", [["one"], ["chat", "", "naïve ☃"], []])
def test_named_columns_have_the_name_of_each_row_or_none(names: list[str]) -> None:
    draw = random.Random(1)
    for length in (0, 1, 50):
        codes = sorted(draw.choices(range(-1, len(names)), k=length), key=lambda _: draw.random() < 0.3)
        column = _array("class", Named(np.array(codes, dtype=np.int64), names))
        assert column.to_pylist() == [None if code < 0 else names[code] for code in codes]
