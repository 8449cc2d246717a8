"""Trace readers: every format, plain and gzip, and every way a file can be wrong."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.errors import InputError
from sim.scenario.schema import TraceConfig
from sim.workload.trace_fields import NOT_GIVEN
from sim.workload.trace_files import MAX_PROBLEMS
from sim.workload.trace_mooncake import chain
from sim.workload.trace_table import Trace
from sim.workload.traces import read_trace, scale_times

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,374,44\n"
    "2023-11-16 18:15:50.9951690,396,109\n"
    "2023-11-16 18:15:51.2224670,879,55"
)
MOONCAKE = (
    '{"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]}\n'
    '{"timestamp": 2999, "input_length": 1024, "output_length": 7, "hash_ids": [0, 3]}\n'
)
GENERIC = (
    "request_id,arrival_s,input_tokens,output_tokens,priority,tenant,prefix_group,prefix_tokens,session,"
    "expected_output_tokens,model\n"
    "a,0.5,100,10,2,gold,g1,40,s1,12,\n"
    ",1.25,200,20,,,,,,,\n"
    "c,2,30,30,-1,free,g1,64,s1,,\n"
)
BENCH = {
    "date": "20250101-000000",
    "duration": 3.5,
    "itls": [[0.1, 0.2], [], [0.3]],
    "start_times": [1000.5, 1000.25, 1002.0],
    "input_lens": [10, 20, 30],
    "output_lens": [3, 1, 2],
    "errors": ["", "", ""],
}


REMEDY = "Give the file's own names under workload.trace.columns, or another workload.trace.format"
FAILED = "trace: {} of {} requests have zero tokens (they failed when they were recorded) and are left out"


def read(folder: Path, text: str | bytes, fmt: str, **config: Any) -> Trace:
    path = folder / "trace"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_trace(TraceConfig(path="trace", format=fmt, **config), folder)


def messages(folder: Path, text: str | bytes, fmt: str, **config: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        read(folder, text, fmt, **config)
    return [str(problem).replace(str(folder), "DIR") for problem in caught.value.problems]


# --- the formats -----------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [str.encode, lambda text: gzip.compress(text.encode())])
def test_azure_timestamps_to_the_100_ns(tmp_path: Path, pack: Any) -> None:
    trace = read(tmp_path, pack(AZURE), "azure")
    assert trace.arrival_ns.tolist() == [0, 4_314_579_000, 4_541_877_000]
    assert trace.input_tokens.tolist() == [374, 396, 879]
    assert trace.output_tokens.tolist() == [44, 109, 55]
    assert trace.notes == []


def test_azure_with_zone_carriage_returns_and_byte_order_mark(tmp_path: Path) -> None:
    text = "\ufeff" + AZURE.replace("6805900", "680590+00:00").replace("\n", "\r\n")
    assert read(tmp_path, text, "azure").arrival_ns.tolist() == [0, 4_314_579_000, 4_541_877_000]


@pytest.mark.parametrize("pack", [str.encode, lambda text: gzip.compress(text.encode())])
def test_mooncake_blocks_become_segments(tmp_path: Path, pack: Any) -> None:
    trace = read(tmp_path, pack(MOONCAKE), "mooncake")
    assert trace.arrival_ns.tolist() == [0, 2_999_000_000]
    assert trace.output_tokens.tolist() == [5, 7]
    assert trace.segments is not None
    assert trace.segments.count.tolist() == [3, 2]
    assert trace.segments.content_id.tolist() == [0, 1, 2, 0, 3]
    assert trace.segments.end_tokens.tolist() == [512, 1024, 1100, 512, 1024]


def test_mooncake_with_hashes_of_62_bits_keeps_who_shares(tmp_path: Path) -> None:
    trace = read(tmp_path, MOONCAKE.replace("[0, ", f"[{2**61}, "), "mooncake")
    assert trace.segments is not None
    assert trace.segments.content_id.tolist() == [3, 0, 1, 3, 2]


@pytest.mark.parametrize("pack", [str.encode, lambda text: gzip.compress(text.encode())])
def test_generic_csv_with_every_column(tmp_path: Path, pack: Any) -> None:
    trace = read(tmp_path, pack(GENERIC), "generic")
    check_generic(trace)
    assert trace.request_ids == ["a", "1", "c"]


def check_generic(trace: Trace) -> None:
    assert trace.arrival_ns.tolist() == [500_000_000, 1_250_000_000, 2_000_000_000]
    assert trace.input_tokens.tolist() == [100, 200, 30]
    assert trace.priority is not None
    assert trace.priority.tolist() == [2, NOT_GIVEN, -1]
    assert trace.tenant is not None
    assert trace.tenant.tolist() == [0, NOT_GIVEN, 1]
    assert trace.tenant_names == ["gold", "free"]
    assert trace.session is not None
    assert trace.session.tolist() == [0, -1, 0]
    assert trace.expected_output_tokens is not None
    assert trace.expected_output_tokens.tolist() == [12, -1, -1]
    assert trace.segments is not None
    assert trace.segments.count.tolist() == [1, 0, 1]
    assert trace.segments.content_id.tolist() == [0, 0]
    assert trace.segments.end_tokens.tolist() == [40, 30]  # never beyond the prompt


def test_generic_jsonl_with_every_key(tmp_path: Path) -> None:
    rows = [
        {"arrival_s": 0.5, "input_tokens": 100, "output_tokens": 10, "priority": 2, "tenant": "gold",
         "prefix_group": "g1", "prefix_tokens": 40, "session": "s1", "expected_output_tokens": 12},
        {"arrival_s": 1.25, "input_tokens": 200, "output_tokens": 20, "tenant": None},
        {"arrival_s": 2, "input_tokens": 30.0, "output_tokens": 30, "priority": -1, "tenant": "free",
         "prefix_group": "g1", "prefix_tokens": 64, "session": "s1"},
    ]  # fmt: skip
    check_generic(read(tmp_path, "\n" + "\n".join(map(json.dumps, rows)), "generic"))


def test_generic_with_the_three_needed_columns_in_any_order(tmp_path: Path) -> None:
    trace = read(tmp_path, "output_tokens,arrival_s,input_tokens\n 1, 0.1, 3\n\n4,0.1,12.0\n", "generic")
    assert trace.input_tokens.tolist() == [3, 12]
    assert trace.request_ids is trace.priority is trace.tenant is trace.session is trace.segments is None


def test_model_column_is_noted_once(tmp_path: Path) -> None:
    trace = read(tmp_path, GENERIC.replace("12,\n", "12,llama\n"), "generic")
    assert trace.notes == [
        "trace: the column `model` is not used: every replica serves the engine's one model",
    ]


def test_late_times_stay_exact(tmp_path: Path) -> None:
    text = "arrival_s,input_tokens,output_tokens\n1700158546.680590001,1,1\n1700158546.680590002,1,1\n"
    assert read(tmp_path, text, "generic").arrival_ns.tolist() == [1700158546680590001, 1700158546680590002]


def test_out_of_order_rows_are_sorted_stably_with_all_their_columns(tmp_path: Path) -> None:
    header, *rows = GENERIC.splitlines()
    trace = read(tmp_path, "\n".join([header, rows[2], rows[1], rows[0]]), "generic")
    assert trace.arrival_ns.tolist() == [500_000_000, 1_250_000_000, 2_000_000_000]
    assert trace.request_ids == ["a", "1", "c"]
    assert trace.input_tokens.tolist() == [100, 200, 30]
    assert trace.priority is not None
    assert trace.priority.tolist() == [2, NOT_GIVEN, -1]
    assert trace.expected_output_tokens is not None
    assert trace.expected_output_tokens.tolist() == [12, -1, -1]
    assert trace.segments is not None
    assert trace.segments.end_tokens.tolist() == [40, 30]
    assert trace.notes == ["trace: arrivals were out of order and have been sorted"]
    tied = "arrival_s,input_tokens,output_tokens\n1,1,1\n0,2,1\n0,3,1\n"
    assert read(tmp_path, tied, "generic").input_tokens.tolist() == [2, 3, 1]


def test_mooncake_segments_follow_their_rows_when_sorted(tmp_path: Path) -> None:
    trace = read(tmp_path, MOONCAKE.replace('"timestamp": 0', '"timestamp": 5000'), "mooncake")
    assert trace.segments is not None
    assert trace.segments.count.tolist() == [2, 3]
    assert trace.segments.content_id.tolist() == [0, 3, 0, 1, 2]


@pytest.mark.parametrize("pack", [str.encode, lambda text: gzip.compress(text.encode())])
def test_vllm_bench_result(tmp_path: Path, pack: Any) -> None:
    trace = read(tmp_path, pack(json.dumps(BENCH)), "vllm_bench")
    assert trace.arrival_ns.tolist() == [0, 250_000_000, 1_750_000_000]
    assert trace.input_tokens.tolist() == [20, 10, 30]
    assert trace.output_tokens.tolist() == [1, 3, 2]


def test_vllm_bench_failed_requests_are_left_out(tmp_path: Path) -> None:
    failed = BENCH | {"output_lens": [3, 0, 2], "start_times": [1000.5, 0.0, 1002.0]}
    trace = read(tmp_path, json.dumps(failed, indent=2), "vllm_bench")
    assert trace.arrival_ns.tolist() == [0, 1_500_000_000]
    assert trace.notes == [FAILED.format(1, 3)]


def test_limit_takes_the_first_rows_and_reads_no_further(tmp_path: Path) -> None:
    assert len(read(tmp_path, AZURE + "\nrubbish", "azure", limit=2).arrival_ns) == 2
    assert len(read(tmp_path, MOONCAKE + "rubbish", "mooncake", limit=2).arrival_ns) == 2
    assert len(read(tmp_path, json.dumps(BENCH), "vllm_bench", limit=1).arrival_ns) == 1


def test_rate_scale_divides_times(tmp_path: Path) -> None:
    trace = read(tmp_path, AZURE, "azure", rate_scale=2)
    assert trace.arrival_ns.tolist() == [0, 2_157_289_500, 2_270_938_500]


def test_rate_scale_cannot_leave_64_bits(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="beyond 64-bit"):
        read(tmp_path, GENERIC, "generic", rate_scale=1e-10)


@given(
    times=st.lists(st.integers(0, 2**55), min_size=1, max_size=20),
    scale=st.floats(0.1, 1000) | st.sampled_from([0.1, 0.3, 1.5, 3.0]),
)
def test_scaled_times_are_the_exact_quotient_rounded(times: list[int], scale: float) -> None:
    scaled = scale_times(np.array(times, dtype=np.int64), scale).tolist()
    for before, after in zip(times, scaled, strict=True):
        assert abs(Fraction(before) / Fraction(repr(scale)) - after) <= Fraction(1, 2)


def test_path_is_relative_to_the_scenario_then_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "scenarios").mkdir()
    (tmp_path / "here" / "t.csv").write_text(AZURE)
    config = TraceConfig(path="t.csv", format="azure")
    monkeypatch.chdir(tmp_path / "here")
    assert len(read_trace(config, tmp_path / "scenarios").arrival_ns) == 3
    (tmp_path / "scenarios" / "t.csv").write_text(AZURE + "\n2023-11-16 18:15:59,1,1\n")
    assert len(read_trace(config, tmp_path / "scenarios").arrival_ns) == 4


# --- what can be wrong -----------------------------------------------------------------------

HEAD = "arrival_s,input_tokens,output_tokens\n"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0,-5,1", "input_tokens: expected a whole number of at least 0, found '-5'"),
        ("0,5,1.5", "output_tokens: expected a whole number of at least 0, found '1.5'"),
        ("0,nan,1", "input_tokens: expected a whole number of at least 0, found 'nan'"),
        ("0,many,1", "input_tokens: expected a whole number of at least 0, found 'many'"),
        ("0,5,", "output_tokens: expected a whole number of at least 0, found nothing"),
        ("0,99999999999999999999,1", "input_tokens: expected a whole number of at least 0, found '9999"),
        ("nan,5,1", "arrival_s: expected a time in seconds of at least 0, found 'nan'"),
        ("inf,5,1", "arrival_s: expected a time in seconds of at least 0, found 'inf'"),
        ("-1,5,1", "arrival_s: expected a time in seconds of at least 0, found '-1'"),
        ("1e30,5,1", "arrival_s: expected a time in seconds of at least 0 within what 64-bit"),
        ("noon,5,1", "arrival_s: expected a time in seconds of at least 0, found 'noon'"),
        ("0,5", "expected 3 values (arrival_s,input_tokens,output_tokens), found 2"),
        ("0,5,1,7", "expected 3 values (arrival_s,input_tokens,output_tokens), found 4"),
    ],
)
def test_bad_generic_row_is_named_by_line(tmp_path: Path, row: str, message: str) -> None:
    (problem,) = messages(tmp_path, f"{HEAD}0,5,1\n\n{row}\n9,5,1\n", "generic")
    assert problem.startswith(f"DIR/trace:4: {message}")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("2023-11-16,5,1", "TIMESTAMP: expected a timestamp such as 2023-11-16 18:15:46.6805900, found '2023-11-16'"),
        ("2023-13-41 00:00:00,5,1", "TIMESTAMP: expected a timestamp such as 2023-11-16 18:15:46.6805900, found"),
        ("NaT,5,1", "TIMESTAMP: expected a timestamp such as 2023-11-16 18:15:46.6805900, found 'NaT'"),
        ("2023-11-16 18:15:46,-5,1", "ContextTokens: expected a whole number of at least 0, found '-5'"),
    ],
)
def test_bad_azure_row_is_named_by_line(tmp_path: Path, row: str, message: str) -> None:
    (problem,) = messages(tmp_path, f"{AZURE}\n{row}\n", "azure")
    assert problem.startswith(f"DIR/trace:5: {message}")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"timestamp": 1,, }', "DIR/trace:3:17: not JSON: "),
        (
            '{"timestamp": 1, "input_length": 5, "hash_ids": [1]}',
            "missing key 'output_length' of format mooncake; found",
        ),
        ('{"timestamp": 1, "output_length": 5, "messages": []}', "`messages` holds text, whose tokens have to be"),
        ('{"input_length": 5, "output_length": 1, "hash_ids": [1]}', "request 3 of the file: neither a timestamp nor"),
        ('{"timestamp": NaN, "input_length": 5, "output_length": 1, "hash_ids": [1]}', "NaN is not a number"),
        ('{"timestamp": true, "input_length": 5, "output_length": 1, "hash_ids": [1]}', "timestamp: expected a time"),
        (
            '{"timestamp": 1, "input_length": 5, "output_length": -1, "hash_ids": [1]}',
            "output_length: expected a whole",
        ),
        ('{"timestamp": 1, "input_length": 5, "output_length": true, "hash_ids": [1]}', "found True"),
        ('{"timestamp": 1, "input_length": 5, "output_length": 1, "hash_ids": [-1]}', "hash_ids: expected a list"),
        ('{"timestamp": 1, "input_length": 5, "output_length": 1, "hash_ids": 7}', "hash_ids: expected a list"),
        ("[1, 2]", "expected an object with the keys input_length, output"),
        ("[" * 100_000, "not a JSON object"),
    ],
)
def test_bad_mooncake_line_is_named(tmp_path: Path, row: str, message: str) -> None:
    found = messages(tmp_path, f"{MOONCAKE}{row}\n", "mooncake")
    assert found[0].startswith(("DIR/trace:3:", "DIR/trace: request 3 "))
    assert len(found) == 1
    assert message in found[0]


def test_mooncake_hash_count_must_fit_the_length(tmp_path: Path) -> None:
    assert messages(tmp_path, MOONCAKE.replace("1024", "1025"), "mooncake") == [
        "DIR/trace: request 2 of the file: expected 3 hash_ids (one per 512 tokens of its input_length 1025), found 2; "
        "all requests fit workload.trace.block_size 513 to 549"
    ]


@pytest.mark.parametrize(
    ("text", "fmt", "expected"),
    [
        ("", "generic", ["DIR/trace:1: expected a header line and one line per request, found an empty first line"]),
        (HEAD, "generic", ["DIR/trace: the trace holds no requests"]),
        ("", "mooncake", ["DIR/trace: the trace holds no requests"]),
        (
            "arrival_s,input_tokens\n0,1\n",
            "generic",
            ["DIR/trace:1: missing column 'output_tokens' of format generic; found arrival_s, input_tokens. " + REMEDY],
        ),
        (HEAD.replace("\n", ",input_tokens\n"), "generic", ["DIR/trace:1: column 'input_tokens' is given twice"]),
        (
            HEAD + "0,5,1\n" * 3 + "1,5,1\n",
            "azure",
            [
                "DIR/trace:1: missing columns 'TIMESTAMP', 'ContextTokens', 'GeneratedTokens' of format azure; found "
                "arrival_s, input_tokens, output_tokens. " + REMEDY
            ],
        ),
    ],
)
def test_empty_files_and_wrong_headers(tmp_path: Path, text: str, fmt: str, expected: list[str]) -> None:
    assert messages(tmp_path, text, fmt) == expected


def test_columns_that_nothing_reads_are_noted_with_what_was_perhaps_meant(tmp_path: Path) -> None:
    trace = read(tmp_path, HEAD.replace("\n", ",priorty,user\n") + "0,5,1,7,u1\n", "generic")
    assert trace.priority is None
    assert trace.notes == ["trace: not read: priorty (meant as priority?), user"]
    row = '{"timestamp": 1, "input_length": 5, "output_length": 1, "hash_ids": [1], "hash_id": 1, "z": {}}\n'
    assert read(tmp_path, row * 3, "mooncake").notes == ["trace: not read: hash_id, z"]


def test_truncated_gzip(tmp_path: Path) -> None:
    packed = gzip.compress((HEAD + "".join(f"{k},5,{k % 7 + 1}\n" for k in range(5000))).encode())
    (problem,) = messages(tmp_path, packed[: len(packed) // 2], "generic")
    assert problem == "DIR/trace: the gzip file is cut off: the download or copy did not finish; fetch it again"


def test_damaged_gzip(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress((HEAD + "0,5,1\n" * 5000).encode()))
    packed[-6] ^= 0xFF
    (problem,) = messages(tmp_path, bytes(packed), "generic")
    assert problem.startswith("DIR/trace: the gzip file is damaged (CRC check failed")


@pytest.mark.parametrize("fmt", ["azure", "burstgpt", "mooncake", "servegen", "generic", "vllm_bench"])
@pytest.mark.parametrize("garbage", [bytes(range(128, 256)) * 40, b"\x00" * 500_000, b"PK\x03\x04" + b"\x00\x01" * 99])
def test_binary_garbage_is_refused_in_words(tmp_path: Path, fmt: str, garbage: bytes) -> None:
    for text in messages(tmp_path, garbage, fmt):
        assert text.startswith("DIR/trace")
        assert len(text) < 600


def test_many_problems_are_counted(tmp_path: Path) -> None:
    found = messages(tmp_path, HEAD + "0,x,1\n" * 10_000, "generic")
    assert len(found) == MAX_PROBLEMS + 1
    assert found[0].startswith("DIR/trace:2: ")
    assert found[-2].startswith(f"DIR/trace:{MAX_PROBLEMS + 1}: ")
    assert found[-1] == f"DIR/trace: ... and {10_000 - MAX_PROBLEMS} more"


def test_a_bad_line_far_into_the_file_has_its_own_number(tmp_path: Path) -> None:
    rows = [f"{k},5,1" for k in range(20_000)]
    rows[17_123] = "17123,5,none"
    (problem,) = messages(tmp_path, HEAD + "\n".join(rows), "generic")
    assert problem.startswith("DIR/trace:17125: output_tokens")


def test_duplicate_request_id(tmp_path: Path) -> None:
    assert messages(tmp_path, "request_id," + HEAD + "a,0,1,1\nb,1,1,1\na,2,1,1\n", "generic") == [
        "DIR/trace: request_id 'a' is given twice; ids must be unique"
    ]


def test_prefix_group_and_tokens_come_together(tmp_path: Path) -> None:
    text = "prefix_group,prefix_tokens," + HEAD + "g,,0,9,1\n,5,1,9,1\n,0,2,9,1\n"
    assert messages(tmp_path, text, "generic") == [
        "DIR/trace: request 1 of the file: prefix_group without prefix_tokens; give both or neither",
        "DIR/trace: request 2 of the file: prefix_tokens without prefix_group; give both or neither",
    ]


def test_a_stray_carriage_return_or_quote_is_not_a_crash(tmp_path: Path) -> None:
    assert messages(tmp_path, HEAD + '0,5,"1\n1,5,1\n', "generic")[0].startswith("DIR/trace:2: output_tokens")
    assert messages(tmp_path, HEAD + "0,5,\ud7ff1\n", "generic")[0].startswith("DIR/trace:2: output_tokens")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start_times": None}, "writes since vLLM 0.15"),
        ({"input_lens": None, "start_times": None}, "no start_times, input_lens: run `vllm bench serve` with both"),
        ({"output_lens": [1]}, "must be lists of one length"),
        ({"output_lens": 0}, "must be lists of one length"),
        ({"input_lens": [1, "x", 3]}, "input_lens[1]: expected a whole number of at least 0, found 'x'"),
        ({"output_lens": [0, 0, 0]}, "all 3 requests have zero tokens"),
    ],
)
def test_bad_vllm_bench_results(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    content = {key: value for key, value in (BENCH | change).items() if value is not None}
    (problem,) = messages(tmp_path, json.dumps(content), "vllm_bench")
    assert message in problem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(BENCH) + "\n" + json.dumps(BENCH), "more than one result"),
        ("[]", "expected '{'"),
        ("{}", "no start_times, input_lens, output_lens"),
        (json.dumps(BENCH)[:-20], "not a benchmark result"),
        ('{"start_times": ' + "9" * 5000 + "}", "not a benchmark result"),
        ('{"start_times": ' + "[" * 100_000, "not a benchmark result"),
    ],
)
def test_what_is_no_single_result_object(tmp_path: Path, text: str, message: str) -> None:
    (problem,) = messages(tmp_path, text, "vllm_bench")
    assert message in problem


def test_missing_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file; looked for"):
        read_trace(TraceConfig(path="nowhere.csv", format="azure"), tmp_path)
    with pytest.raises(InputError, match="is not a file"):
        read_trace(TraceConfig(path=".", format="azure"), tmp_path)


# --- size ------------------------------------------------------------------------------------


def test_a_long_trace_is_held_as_its_columns_only(tmp_path: Path) -> None:
    """100,000 rows: the peak while reading stays near the three columns kept, far below the text as objects."""
    rows = 100_000
    path = tmp_path / "long.csv"
    path.write_text(HEAD + "".join(f"{k}.5,{k % 4000 + 1},{k % 500 + 1}\n" for k in range(rows)))
    tracemalloc.start()
    try:
        trace = read_trace(TraceConfig(path="long.csv", format="generic"), tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    kept = 3 * 8 * rows
    assert len(trace.arrival_ns) == rows
    assert kept < peak < 2 * kept + 4_000_000  # and one chunk of text


def test_hash_ids_that_follow_different_ones_are_different_contents() -> None:
    """Chained hashes name all that comes before them too; a trace whose ids do not is numbered anew."""
    ids = np.array([1, 2, 3, 1, 2, 4, 5, 2, 3])
    block = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2])
    assert chain(ids, block).tolist() == [0, 1, 2, 0, 1, 3, 4, 5, 6]
    assert chain(ids[:6], block[:6]).tolist() == ids[:6].tolist()
