"""Parquet straight from numpy columns, without pandas; the same columns give the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sim.results.columns import AnyColumn, Named, request_columns, step_columns
from sim.results.record import RunRecord


def _array(name: str, column: AnyColumn | Named | list[str]) -> Any:
    import pyarrow as pa  # type: ignore[import-untyped]

    if isinstance(column, Named):
        codes = pa.array(column.codes.astype(np.int32), mask=column.codes < 0)
        return pa.DictionaryArray.from_arrays(codes, pa.array(column.names, pa.string())).cast(pa.string())
    if name == "request_id":
        return pa.array(column).cast(pa.string())
    if column.dtype.kind == "f":  # type: ignore[union-attr]
        return pa.array(column, from_pandas=True)  # NaN = null
    return pa.array(column, mask=column < 0 if name == "replica" else None)  # type: ignore[operator]


def _write(path: Path, columns: Mapping[str, AnyColumn | Named | list[str]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    table = pa.table({name: _array(name, column) for name, column in columns.items()})
    pq.write_table(table, path, compression="zstd")


def write_requests(path: Path, record: RunRecord) -> None:
    """``requests.parquet``: one row per request."""
    _write(path, request_columns(record))


def write_steps(path: Path, record: RunRecord) -> None:
    """``steps.parquet``: one row per run of identical steps."""
    _write(path, step_columns(record))
