"""Formats of other projects, names of one's own, conversations with delays, and rows that failed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.errors import InputError
from sim.scenario.schema import TraceConfig, WorkloadConfig
from sim.workload.build_table import build_workload
from sim.workload.table import RequestTable
from sim.workload.trace_table import Trace
from sim.workload.traces import read_trace

S, MS = 1_000_000_000, 1_000_000
BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "3,ChatGPT,310,22,332,Conversation log\n"
    "9.5,GPT-4,90,0,90,API log\n"
    "61,GPT-4,1200,400,1600,API log\n"
)
LMM = (
    "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n"
    "2024-10-15 00:00:01.5+00:00,0,300,20\n"
    "2024-10-15 00:00:02.0+00:00,0,400,30\n"
)


def read(folder: Path, text: str, fmt: str, **config: Any) -> Trace:
    (folder / "t").write_text(text)
    return read_trace(TraceConfig(path="t", format=fmt, **config), folder)  # type: ignore[arg-type]


def refused(folder: Path, text: str, fmt: str, **config: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(folder, text, fmt, **config)
    return "\n".join(str(problem) for problem in caught.value.problems)


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def table_of(folder: Path, text: str, fmt: str, only: dict[str, Any] | None = None, **config: Any) -> RequestTable:
    (folder / "t").write_text(text)
    trace = {"path": "t", "format": fmt, **config}
    return build_workload(WorkloadConfig.model_validate({"trace": trace, **(only or {})}), 0, folder)


def left_out(count: int, of: int) -> str:
    return f"t: {count} of {of} requests have zero tokens (they failed when they were recorded) and are left out"


# --- tables ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", ["burstgpt", "generic"])
def test_burstgpt(tmp_path: Path, fmt: str) -> None:
    trace = read(tmp_path, BURSTGPT, fmt)
    assert trace.arrival_ns.tolist() == [3 * S, 61 * S]
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([310, 1200], [22, 400])
    said = [] if fmt == "burstgpt" else ["t: read as format burstgpt, which its columns are of"]
    model = "t: the column `Model` is not used: every replica serves the engine's one model"
    assert trace.notes == [*said, model, "t: not read: Total tokens, Log Type", left_out(1, 3)]


def test_azure_of_2024_and_an_lmm_trace_without_images(tmp_path: Path) -> None:
    trace = read(tmp_path, LMM, "azure")
    assert trace.arrival_ns.tolist() == [0, S // 2]
    assert trace.input_tokens.tolist() == [300, 400]
    assert trace.notes == []
    year = LMM.replace("NumImages,", "").replace(",0,", ",")
    assert read(tmp_path, year, "azure").arrival_ns.tolist() == [0, S // 2]
    assert read(tmp_path, year, "generic").notes == ["t: read as format azure, which its columns are of"]


def test_azures_images_are_counted(tmp_path: Path) -> None:
    trace = read(tmp_path, LMM.replace("0,400", "3,400"), "azure")
    assert trace.num_images is not None
    assert trace.num_images.tolist() == [0, 3]
    assert trace.input_tokens.tolist() == [300, 400], "of the text"
    assert read(tmp_path, LMM, "azure").num_images is None


@pytest.mark.parametrize(
    "text",
    [
        "request_id,timestamp,input_tokens,output_tokens\n0,0.5,12,3\n1,2.25,40,9\n",
        "model,client,arrival_s,input_tokens,output_tokens\nm-large,4,0.5,12,3\nm-large,4,2.25,40,9\n",
        lines(
            {"request_id": 0, "timestamp": 0.5, "data": {"input_tokens": 12, "output_tokens": 3}},
            {"request_id": 1, "timestamp": 2.25, "data": {"input_tokens": 40, "output_tokens": 9}},
        ),
        lines(
            {"timestamp": 0.5, "data": {"text_tokens": 12, "output_tokens": 3, "image_tokens": []}},
            {"timestamp": 2.25, "data": {"text_tokens": 40, "output_tokens": 9, "image_tokens": []}},
        ),
    ],
)
def test_requests_of_servegen(tmp_path: Path, text: str) -> None:
    trace = read(tmp_path, text, "servegen")
    assert trace.arrival_ns.tolist() == [S // 2, 9 * S // 4]
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([12, 40], [3, 9])


def test_a_batch_task_of_servegen_arrives_at_once(tmp_path: Path) -> None:
    rows = [{"request_id": k, "type": "text", "input_length": 9, "output_length": 2, "duration": 90} for k in range(3)]
    trace = read(tmp_path, lines(*rows), "servegen")
    assert trace.arrival_ns.tolist() == [0, 0, 0]
    assert "no timestamps, as in ServeGen's batch tasks: all requests arrive at once" in trace.notes[0]
    told = refused(tmp_path, lines(*rows, rows[0] | {"timestamp": 1.0}), "servegen")
    assert "request 1 of the file: no timestamp, and others have one" in told


def test_what_of_servegen_is_refused(tmp_path: Path) -> None:
    assert "ServeGen's chunk-<i>-trace.csv" in refused(
        tmp_path, "0,1.3,8.5,Weibull,0.3,0.3\n600,0,0,,0,0\n", "servegen"
    )
    row = {"timestamp": 1, "data": {"text_tokens": 9, "output_tokens": 2, "image_tokens": [640, 12]}}
    assert "image_tokens: 1 of 1 requests have images" in refused(tmp_path, lines(row), "servegen")
    hashes = {"request_id": 0, "type": "text", "input_length": 446, "hash_ids": [1, 2]}
    assert "missing key 'output_tokens' of format servegen" in refused(tmp_path, lines(hashes), "servegen")


@pytest.mark.parametrize("columns", [{"arrival_s": "ts"}, {"timestamp": "ts"}])
def test_a_formats_own_name_and_ours_mean_one_column(tmp_path: Path, columns: dict[str, str]) -> None:
    row = {"ts": 4, "input_length": 10, "output_length": 2}
    assert read(tmp_path, lines(row), "mooncake", columns=columns).arrival_ns.tolist() == [4 * MS]


def test_names_of_ones_own(tmp_path: Path) -> None:
    text = "when_ms,who,in,out,level\n1500,a,10,2,gold\n2500,b,20,3,\n"
    columns = {"arrival_s": "when_ms", "input_tokens": "in", "output_tokens": "out", "tenant": "who", "tier": "level"}
    trace = read(tmp_path, text, "generic", columns=columns, time_unit="ms")
    assert trace.arrival_ns.tolist() == [1500 * MS, 2500 * MS]
    assert trace.input_tokens.tolist() == [10, 20]
    assert (trace.tenant_names, trace.tier_names) == (["a", "b"], ["gold"])
    assert trace.notes == []


def test_columns_that_cannot_be(tmp_path: Path) -> None:
    text = "t,in,out\n1,2,3\n"
    told = refused(tmp_path, text, "generic", columns={"in": "input_tokens"})
    assert (
        "workload.trace.columns: unknown name 'in'; the file's name stands on the right: write `input_tokens: in`"
        in told
    )
    told = refused(tmp_path, text, "generic", columns={"input_token": "in"})
    assert "unknown name 'input_token'; did you mean input_tokens? (known: arrival_s, " in told
    told = refused(tmp_path, text, "generic", columns={"arrival_s": "when", "input_tokens": "in"})
    assert "missing columns 'when', 'output_tokens' of format generic; found t, in, out" in told


@pytest.mark.parametrize(
    ("fmt", "config", "told"),
    [
        ("generic", {"block_size": 16}, "workload.trace.block_size is of format mooncake; leave it out for generic"),
        ("azure", {"turns": "added"}, "workload.trace.turns is of format mooncake; leave it out for azure"),
        ("azure", {"time_unit": "ms"}, "workload.trace.time_unit: Azure's TIMESTAMP is a date and time"),
        ("vllm_bench", {"columns": {"a": "b"}}, "workload.trace.columns: vllm bench serve has keys of its own"),
    ],
)
def test_keys_that_a_format_has_no_use_for(tmp_path: Path, fmt: str, config: dict[str, Any], told: str) -> None:
    assert told in refused(tmp_path, LMM, fmt, **config)


# --- failed rows, everywhere alike ------------------------------------------------------------


@pytest.mark.parametrize(
    ("fmt", "text"),
    [
        ("azure", LMM + "2024-10-15 00:00:03+00:00,0,0,7\n"),
        ("burstgpt", BURSTGPT),
        ("generic", "arrival_s,input_tokens,output_tokens\n0,1,1\n1,5,0\n2,1,1\n"),
        ("servegen", "timestamp,input_tokens,output_tokens\n0,0,0\n1,5,5\n2,1,1\n"),
        ("mooncake", lines(*({"timestamp": k, "input_length": 9, "output_length": k} for k in range(3)))),
        (
            "vllm_bench",
            json.dumps({"start_times": [1.0, 2.0, 3.0], "input_lens": [5, 5, 5], "output_lens": [1, 0, 2]}),
        ),
    ],
)
def test_requests_of_zero_tokens_are_counted_and_left_out(tmp_path: Path, fmt: str, text: str) -> None:
    trace = read(tmp_path, text, fmt)
    assert len(trace.arrival_ns) == 2
    assert left_out(1, 3) in trace.notes
    assert trace.input_tokens.min() > 0
    assert trace.output_tokens.min() > 0


def test_outputs_that_were_not_counted_are_as_long_as_their_streams(tmp_path: Path) -> None:
    result = {
        "start_times": [1.0, 2.0, 3.0, 4.0],
        "input_lens": [5] * 4,
        "output_lens": [0, 0, 0, 4],
        "ttfts": [0.1, 0.2, 0.0, 0.3],
        "itls": [[0.1, 0.1], [0.1], [], [0.1] * 3],
        "errors": ["", "cut off", "", ""],
    }
    trace = read(tmp_path, json.dumps(result), "vllm_bench")
    assert trace.output_tokens.tolist() == [3, 4]
    assert left_out(2, 4) in trace.notes


# --- Mooncake --------------------------------------------------------------------------------


def test_mooncake_without_hashes(tmp_path: Path) -> None:
    trace = read(tmp_path, lines({"timestamp": 1.5, "input_length": 1200, "output_length": 5}), "mooncake")
    assert trace.segments is None
    assert trace.arrival_ns.tolist() == [3 * MS // 2]
    assert trace.notes == ["t: no hash_ids: what prompts share is not known, and counts as nothing"]


def test_mooncake_in_blocks_of_another_size_and_seconds(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 61.25, "input_length": 20, "output_length": 8, "hash_ids": [0, 1], "chat_id": 4, "turn": 1},
        {"timestamp": 61.5, "input_length": 15, "output_length": 6, "hash_ids": [0], "chat_id": 5, "turn": 1},
    ]
    trace = read(tmp_path, lines(*rows), "mooncake", block_size=16, time_unit="s")
    assert trace.arrival_ns.tolist() == [61_250 * MS, 61_500 * MS]
    assert trace.segments is not None
    assert trace.segments.end_tokens.tolist() == [16, 20, 15]
    told = refused(tmp_path, lines(*rows), "mooncake")
    assert "expected 1 hash_ids (one per 512 tokens of its input_length 20), found 2" in told
    assert "all requests fit workload.trace.block_size 15 to 19" in told
    other = rows[1] | {"input_length": 40}
    assert "no block size fits all requests" in refused(tmp_path, lines(rows[0], other), "mooncake")


def test_some_requests_without_hashes_share_nothing(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 0, "input_length": 600, "output_length": 1, "hash_ids": [4, 5]},
        {"timestamp": 1, "input_length": 600, "output_length": 1},
    ]
    trace = read(tmp_path, lines(*rows), "mooncake")
    assert trace.segments is not None
    assert trace.segments.count.tolist() == [2, 0]
    assert trace.notes == ["t: 1 of 2 requests have no hash_ids and share nothing"]


TURNS = [
    {"session_id": "a", "timestamp": 100, "input_length": 40, "output_length": 4},
    {"session_id": "b", "timestamp": 50, "input_length": 10, "output_length": 2},
    {"session_id": "a", "delay": 3.5, "input_length": 60, "output_length": 5},
    {"session_id": "b", "delay_ms": 2, "tool_wait_ms": 30, "input_length": 30, "output_length": 1},
    {"session_id": "a", "timestamp": 900, "input_length": 90, "output_length": 6},
]


def test_turns_follow_the_end_of_the_one_before(tmp_path: Path) -> None:
    trace = read(tmp_path, lines(*TURNS), "mooncake")
    # In order of the arrival that each conversation opens with.
    assert trace.input_tokens.tolist() == [10, 30, 40, 60, 90]
    assert trace.parent is not None
    assert trace.parent.tolist() == [-1, 0, -1, 2, -1]
    assert trace.arrival_ns.tolist() == [50 * MS, 32 * MS, 100 * MS, 3_500_000, 900 * MS]
    assert trace.session is not None
    assert trace.session.tolist() == [1, 1, 0, 0, 0]


def test_rate_scale_divides_delays_too(tmp_path: Path) -> None:
    trace = read(tmp_path, lines(*TURNS), "mooncake", rate_scale=2)
    assert trace.arrival_ns.tolist() == [25 * MS, 16 * MS, 50 * MS, 1_750_000, 450 * MS]


def test_what_turns_add_becomes_the_whole_conversation(tmp_path: Path) -> None:
    rows = [
        {"session_id": "a", "timestamp": 0, "input_length": 600, "output_length": 4, "hash_ids": [7, 8]},
        {"session_id": "a", "delay": 1, "input_length": 10, "output_length": 5, "hash_ids": [9]},
        {"session_id": "a", "delay": 1, "input_length": 20, "output_length": 6},
    ]
    trace = read(tmp_path, lines(*rows), "mooncake", turns="added")
    assert trace.input_tokens.tolist() == [600, 614, 639]
    assert trace.segments is not None
    assert trace.segments.content_id.tolist() == [7, 8] * 3
    assert trace.segments.end_tokens.tolist() == [512, 600] * 3
    assert "hash_ids of later turns are not used" in trace.notes[-1]


def test_a_turn_of_zero_tokens_is_stepped_over(tmp_path: Path) -> None:
    rows = [
        {"session_id": "a", "timestamp": 5, "input_length": 10, "output_length": 4},
        {"session_id": "a", "delay": 1, "input_length": 20, "output_length": 0},
        {"session_id": "a", "delay": 2, "input_length": 30, "output_length": 6},
    ]
    trace = read(tmp_path, lines(*rows), "mooncake")
    assert trace.parent is not None
    assert trace.parent.tolist() == [-1, 0]
    assert trace.arrival_ns.tolist() == [5 * MS, 3 * MS]
    assert read(tmp_path, lines(*rows), "mooncake", turns="added").input_tokens.tolist() == [10, 44]
    first = read(tmp_path, lines(rows[0] | {"output_length": 0}, rows[2]), "mooncake")
    assert first.parent is not None
    assert (first.parent.tolist(), first.arrival_ns.tolist()) == ([-1], [7 * MS])


def test_requests_wait_for_those_that_they_name(tmp_path: Path) -> None:
    rows = [
        {"request_id": "r0", "timestamp": 0, "input_length": 10, "output_length": 4, "wait_for": []},
        {"request_id": "r1", "input_length": 20, "output_length": 1, "wait_for": ["r0"], "tool_wait_ms": 5},
        {"request_id": "r2", "input_length": 30, "output_length": 6, "wait_for": ["r0"], "delay": 1, "tool_wait_ms": 7},
    ]
    trace = read(tmp_path, lines(*rows), "mooncake")
    assert trace.parent is not None
    assert trace.parent.tolist() == [-1, 0, 0]
    assert trace.arrival_ns.tolist() == [0, 5 * MS, 8 * MS]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"wait_for": ["r0", "r1"]}, "wait_for: expected a list of at most one name (a request that waits for several"),
        ({"wait_for": ["r9"]}, "request 2 of the file: wait_for names the request_id 'r9', which no row has"),
        ({"wait_for": ["r1"]}, "wait_for names the request_id 'r1', which is not before it in the file"),
        ({"delay": 4}, "request 2 of the file: neither a timestamp nor a turn before it in its session_id"),
        ({"delay": -4}, "delay: expected a time in ms of at least 0, found -4"),
    ],
)
def test_what_cannot_be_waited_for(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    first = {"request_id": "r0", "timestamp": 0, "input_length": 10, "output_length": 4}
    second = {"request_id": "r1", "input_length": 20, "output_length": 1, **change}
    assert told in refused(tmp_path, lines(first, second), "mooncake")


def test_a_limit_on_time_counts_when_conversations_open(tmp_path: Path) -> None:
    table = table_of(tmp_path, lines(*TURNS), "mooncake", {"duration_s": 0.1})
    assert table.input_tokens.tolist() == [10, 30]
    assert table.parent.tolist() == [-1, 0]


# --- rows of classes of their own -------------------------------------------------------------


def test_a_row_may_have_class_tenant_tier_priority_deadline_and_more(tmp_path: Path) -> None:
    text = (
        "arrival_s,input_tokens,output_tokens,class,tenant,tier,priority,deadline_s,lora,model\n"
        "0,1,1,chat,acme,gold,1,2.5,sql,m\n"
        "1,1,1,chat,acme,gold,,,,\n"
        "2,1,1,batch,acme,,5,,,\n"
        "3,1,1,chat,umbrella,,,,,\n"
        "4,1,1,,,,,,,\n"
    )
    more = {"tier": "bronze", "priority": 3, "deadline_s": 9}
    table = table_of(tmp_path, text, "generic", more)
    named = [(info.name, info.tenant, info.tier) for info in table.classes]
    assert named == [
        ("chat/acme/gold", "acme", "gold"),
        ("batch", "acme", "bronze"),
        ("chat/umbrella/bronze", "umbrella", "bronze"),
        ("default", "default", "bronze"),
    ]
    assert table.class_index.tolist() == [0, 0, 1, 2, 3]
    assert table.priority.tolist() == [1, 3, 5, 3, 3]
    assert table.deadline_ns.tolist() == [5 * S // 2, 9 * S, 9 * S, 9 * S, 9 * S]
    assert table.notes == ["t: the column `model` is not used: every replica serves the engine's one model"]
    assert table.loras == ("sql",)
    assert table.lora is not None
    assert table.lora.tolist() == [1, 0, 0, 0, 0]


def test_adapters_of_a_trace_are_noted_where_none_are_served(tmp_path: Path) -> None:
    text = "arrival_s,input_tokens,output_tokens,lora\n0,1,1,sql\n1,1,1,\n"
    assert table_of(tmp_path, text, "generic", {"lora": "own"}).loras == ("own", "sql")
    (tmp_path / "t").write_text(text)
    config = WorkloadConfig(trace=TraceConfig(path="t", format="generic"))
    table = build_workload(config, 0, tmp_path, serves_loras=False)
    assert table.lora is None
    assert table.notes == ["the trace's adapters (`lora`) are not used: engine.enable_lora is off"]


def test_a_row_may_have_an_adapter_of_its_own(tmp_path: Path) -> None:
    text = "arrival_s,input_tokens,output_tokens,lora\n0,1,1,sql\n1,1,1,\n3,1,1,law\n2,1,1,sql\n"
    (tmp_path / "t").write_text(text)
    trace = {"path": "t", "format": "generic"}
    for own, adapters, numbers in (
        (None, ("sql", "law"), [1, 0, 1, 2]),
        ("base", ("base", "sql", "law"), [2, 1, 2, 3]),
    ):
        config = WorkloadConfig.model_validate({"trace": trace, "lora": own})
        table = build_workload(config, 0, tmp_path, serves_loras=True)
        assert table.lora is not None
        assert (table.loras, table.lora.tolist()) == (adapters, numbers)
        assert table.notes == ["t: arrivals were out of order and have been sorted"]


def test_a_row_without_tenant_is_of_the_class_that_has_none(tmp_path: Path) -> None:
    text = "arrival_s,input_tokens,output_tokens,tenant\n0,1,1,default\n1,1,1,\n"
    table = table_of(tmp_path, text, "generic")
    assert [info.name for info in table.classes] == ["default"]
    assert np.all(table.class_index == 0)


def test_other_formats_take_these_columns_too(tmp_path: Path) -> None:
    text = (
        LMM.replace("GeneratedTokens\n", "GeneratedTokens,tenant\n")
        .replace(",20\n", ",20,a\n")
        .replace(",30\n", ",30,b\n")
    )
    assert [info.name for info in table_of(tmp_path, text, "azure").classes] == ["a", "b"]


def test_one_fault_of_many_lines_is_one_message(tmp_path: Path) -> None:
    row = {"timestamp": 1, "input_length": 5}
    told = refused(tmp_path, lines(*[row] * 500), "mooncake").splitlines()
    assert len(told) == 1
    assert told[0].startswith(f"{tmp_path}/t:1: missing key 'output_length' of format mooncake; found timestamp, input")
    assert told[0].endswith("(499 more lines likewise)")
    told = refused(tmp_path, BURSTGPT, "mooncake").splitlines()
    said = "format mooncake is a JSON object per line, and this is none; give another workload.trace.format"
    assert told == [f"{tmp_path}/t:1: {said} (3 more lines likewise)"]
