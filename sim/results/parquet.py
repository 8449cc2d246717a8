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

Lengths = npt.NDArray[np.int64]

INSTANTS = frozenset(("arrival_s", "scheduled_s", "first_token_s", "finish_s", "start_s", "end_s", "last_scheduled_s"))
"""They rise, so that their high bytes repeat: written byte by byte they are a fifth smaller and faster to compress."""
BY_COUNT = frozenset(("host_ms", "matrices_ms", "elementwise_ms", "lm_head_ms", "sampling_ms", "step_overhead_ms"))
"""Times that follow from a step's tokens or requests alone, of which there are few."""


def _numbers(column: AnyColumn, valid: npt.NDArray[np.bool_] | None = None) -> Any:
    """An Arrow array over ``column``'s own memory; null where not ``valid``."""
    import pyarrow as pa  # type: ignore[import-untyped]

    bitmap = None
    if valid is not None and not valid.all():
        bitmap = pa.py_buffer(np.packbits(valid, bitorder="little"))
    values = np.ascontiguousarray(column)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [bitmap, pa.py_buffer(values)])


def _strings(texts: bytes, lengths: Lengths, valid: npt.NDArray[np.bool_] | None = None) -> Any:
    """UTF-8 texts one after the other, null where not ``valid``."""
    import pyarrow as pa

    kind, offset = (pa.string(), np.int32) if len(texts) < 1 << 31 else (pa.large_string(), np.int64)
    offsets = np.zeros(len(lengths) + 1, dtype=offset)
    np.cumsum(lengths, out=offsets[1:])
    bitmap = None
    if valid is not None and not valid.all():
        bitmap = pa.py_buffer(np.packbits(valid, bitorder="little"))
    return pa.Array.from_buffers(kind, len(lengths), [bitmap, pa.py_buffer(offsets), pa.py_buffer(texts)])


def _utf8(texts: Iterable[str]) -> list[bytes]:
    return [text.encode("utf-8", "replace") for text in texts]


def _lengths(texts: Sequence[bytes]) -> Lengths:
    return np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))


def _named(column: Named) -> Any:
    """Few distinct texts, most often in long stretches of the same."""
    names = [*_utf8(column.names), b""]
    codes = column.codes
    starts = np.flatnonzero(np.diff(codes, prepend=-2))
    stretches = np.diff(starts, append=len(codes)).tolist()
    texts = b"".join([names[code] * times for code, times in zip(codes[starts].tolist(), stretches, strict=True)])
    return _strings(texts, _lengths(names)[codes], codes >= 0)


def _decimals(numbers: npt.NDArray[np.int64]) -> Any:
    """Ascending numbers, none below 0, as decimal digits."""
    limits = np.searchsorted(numbers, 10 ** np.arange(1, 19)).tolist()
    lengths = np.ones(len(numbers), dtype=np.int64)
    texts, begin = [], 0
    for digits, end in enumerate([*limits, len(numbers)], start=1):
        if end > begin:
            powers = 10 ** np.arange(digits - 1, -1, -1)
            texts.append((numbers[begin:end, None] // powers % 10 + ord("0")).astype(np.uint8).tobytes())
            lengths[begin:end] = digits
            begin = end
    return _strings(b"".join(texts), lengths)


def _array(name: str, column: AnyColumn | Named | list[str]) -> Any:
    if isinstance(column, Named):
        return _named(column)
    if isinstance(column, list):
        texts = _utf8(column)
        return _strings(b"".join(texts), _lengths(texts))
    if name == "request_id":
        return _decimals(column)
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
                instants = [name for name in columns if name in INSTANTS]
                writer = pq.ParquetWriter(
                    path,
                    table.schema,
                    compression="zstd",
                    use_dictionary=repeated,
                    use_byte_stream_split=instants,
                )
            writer.write_table(table, row_group_size=ROWS_AT_ONCE)
    finally:
        if writer is not None:
            writer.close()


def _repeats(name: str, kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_floating(kind):
        return name in BY_COUNT
    return name not in ("request_id", "decode_context_tokens", "free_blocks")


def write_requests(path: Path, record: RunRecord) -> None:
    """``requests.parquet``: one row per request."""
    _write(path, [request_columns(record)])


def write_steps(path: Path, record: RunRecord) -> None:
    """``steps.parquet``: one row per run of identical steps."""
    num_rows = len(record.steps["replica"])
    starts = range(0, max(num_rows, 1), ROWS_AT_ONCE)
    _write(path, (step_columns(record, slice(start, start + ROWS_AT_ONCE)) for start in starts))
