"""Parquet straight from numpy columns; the same columns give the same bytes.

Arrays are made from buffers: ``pyarrow.array`` would import pandas, which takes longer than a short run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.results.columns import AnyColumn, Named, request_columns, step_columns
from sim.results.record import ROWS_AT_ONCE, RunRecord


def _numbers(column: AnyColumn, valid: npt.NDArray[np.bool_] | None = None) -> Any:
    """An Arrow array over ``column``'s own memory; null where not ``valid``."""
    import pyarrow as pa  # type: ignore[import-untyped]

    bitmap = None
    if valid is not None and not valid.all():
        bitmap = pa.py_buffer(np.packbits(valid, bitorder="little"))
    values = np.ascontiguousarray(column)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [bitmap, pa.py_buffer(values)])


def _strings(texts: Sequence[str]) -> Any:
    import pyarrow as pa

    encoded = [text.encode("utf-8", "replace") for text in texts]
    offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
    np.cumsum([len(each) for each in encoded], out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.large_string(), len(encoded), buffers).cast(pa.string())


def _array(name: str, column: AnyColumn | Named | list[str]) -> Any:
    import pyarrow as pa

    if isinstance(column, Named):
        codes = _numbers(column.codes.astype(np.int32), column.codes >= 0)
        return pa.DictionaryArray.from_arrays(codes, _strings(column.names)).cast(pa.string())
    if isinstance(column, list):
        return _strings(column)
    if name == "request_id":
        return _numbers(column).cast(pa.string())
    if column.dtype.kind == "f":
        return _numbers(column, ~np.isnan(column))
    return _numbers(column, column >= 0 if name == "replica" else None)


def _write(path: Path, tables: Iterable[Mapping[str, AnyColumn | Named | list[str]]]) -> None:
    """One row group for each of ``tables``, which have the same columns; at least one."""
    import pyarrow as pa
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    writer = None
    try:
        for columns in tables:
            arrays = [_array(name, column) for name, column in columns.items()]
            table = pa.Table.from_arrays(arrays, names=list(columns))
            if writer is None:
                # Instants and ids hardly repeat: looking for repetitions takes longer than compressing them.
                repeated = [name for name, array in zip(columns, arrays, strict=True) if _repeats(name, array.type)]
                writer = pq.ParquetWriter(path, table.schema, compression="zstd", use_dictionary=repeated)
            writer.write_table(table, row_group_size=ROWS_AT_ONCE)
    finally:
        if writer is not None:
            writer.close()


def _repeats(name: str, kind: Any) -> bool:
    import pyarrow as pa

    return not pa.types.is_floating(kind) and name not in ("request_id", "decode_context_tokens", "free_blocks")


def write_requests(path: Path, record: RunRecord) -> None:
    """``requests.parquet``: one row per request."""
    _write(path, [request_columns(record)])


def write_steps(path: Path, record: RunRecord) -> None:
    """``steps.parquet``: one row per run of identical steps."""
    num_rows = len(record.steps["replica"])
    starts = range(0, max(num_rows, 1), ROWS_AT_ONCE)
    _write(path, (step_columns(record, slice(start, start + ROWS_AT_ONCE)) for start in starts))
