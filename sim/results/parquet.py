"""Parquet straight from numpy columns; the same columns give the same bytes.

Arrays are made from buffers: ``pyarrow.array`` would import pandas, and ``cast`` all compute functions, which take
longer than a short run.
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


def _strings(texts: Sequence[bytes], valid: npt.NDArray[np.bool_] | None = None) -> Any:
    """UTF-8, null where not ``valid``."""
    import pyarrow as pa

    total = sum(map(len, texts))
    kind, offset = (pa.string(), np.int32) if total < 1 << 31 else (pa.large_string(), np.int64)
    offsets = np.zeros(len(texts) + 1, dtype=offset)
    np.cumsum(np.fromiter(map(len, texts), dtype=offset, count=len(texts)), out=offsets[1:])
    bitmap = None
    if valid is not None and not valid.all():
        bitmap = pa.py_buffer(np.packbits(valid, bitorder="little"))
    return pa.Array.from_buffers(kind, len(texts), [bitmap, pa.py_buffer(offsets), pa.py_buffer(b"".join(texts))])


def _utf8(texts: Iterable[str]) -> list[bytes]:
    return [text.encode("utf-8", "replace") for text in texts]


def _array(name: str, column: AnyColumn | Named | list[str]) -> Any:
    if isinstance(column, Named):
        names = [*_utf8(column.names), b""]
        return _strings([names[code] for code in column.codes.tolist()], column.codes >= 0)
    if isinstance(column, list):
        return _strings(_utf8(column))
    if name == "request_id":
        return _strings([b"%d" % number for number in column.tolist()])
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
