"""Several outputs of one prompt, and tenants whose caches are isolated: what rows have in common."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.errors import InputError
from sim.scenario.schema import WorkloadConfig
from sim.workload.build_table import build_workload
from sim.workload.table import NO_GROUP, NO_PARENT, RequestTable

CONSTANT = {"process": "constant", "rate": 1.0}
LENGTHS = {
    "input_tokens": {"dist": "uniform", "low": 50, "high": 150},
    "output_tokens": {"dist": "exponential", "mean": 40},
}
PLAIN: dict[str, Any] = {"requests": 20, "arrival": CONSTANT, **LENGTHS}


def build(isolates_tenants: bool = False, **workload: Any) -> RequestTable:
    return build_workload(WorkloadConfig(**workload), 0, Path("."), isolates_tenants=isolates_tenants)


def segments(table: RequestTable, row: int) -> list[tuple[int, int]]:
    low, high = table.segment_offsets[row : row + 2]
    ids, ends = table.segment_content_id[low:high], table.segment_end_tokens[low:high]
    return list(zip(ids.tolist(), ends.tolist(), strict=True))


# --- several outputs ---------------------------------------------------------------------------------


def test_each_output_is_a_row_with_the_whole_prompt_shared() -> None:
    one, four = build(**PLAIN), build(**PLAIN, n=4)
    assert len(one) == 20
    assert len(four) == 80
    assert one.prompt is None
    assert four.prompt_numbers().tolist() == np.repeat(np.arange(20), 4).tolist()
    for name in ("arrival_ns", "input_tokens", "output_tokens", "max_tokens"):
        assert getattr(four, name).tolist() == np.repeat(getattr(one, name), 4).tolist()
    for prompt in range(20):
        shared = {tuple(segments(four, 4 * prompt + child)) for child in range(4)}
        ((_, end),) = shared.pop()
        assert not shared
        assert end == one.input_tokens[prompt]
    assert len(np.unique(four.segment_content_id)) == 20


def test_outputs_share_a_prefix_of_all_and_then_the_prompt() -> None:
    table = build(**PLAIN, n=2, prefix={"groups": 1, "tokens": 60})
    own = set()
    for row in range(0, len(table), 2):
        assert segments(table, row) == segments(table, row + 1)
        first, *rest = segments(table, row)
        length = int(table.input_tokens[row])
        assert first == (0, min(length, 60))
        assert [end for _, end in rest] == ([length] if length > 60 else [])
        own |= {content for content, _ in rest}
    assert len(own) == sum(table.input_tokens[::2] > 60) > 10


def test_with_max_tokens_each_output_has_its_own_length() -> None:
    limit = {"dist": "fixed", "value": 100}
    one, three = build(**PLAIN, max_tokens=limit), build(**PLAIN, max_tokens=limit, n=3)
    outputs = three.output_tokens.reshape(-1, 3)
    assert outputs[:, 0].tolist() == one.output_tokens.tolist()
    assert sum(len(set(lengths)) > 1 for lengths in outputs.tolist()) > 15
    assert outputs.max() <= 100
    assert (
        build(**{**PLAIN, "requests": 10}, max_tokens=limit, n=3).output_tokens.tolist()
        == outputs[:10].ravel().tolist()
    )


def test_a_class_has_its_own_n_and_other_classes_keep_their_conversations() -> None:
    table = build(
        classes=[
            {**PLAIN, "name": "best-of", "requests": 3, "n": 2},
            {**PLAIN, "name": "chat", "requests": 4, "sessions": {"turns": 2, "think_time_s": 0.0}},
        ]
    )
    names = [table.classes[index].name for index in table.class_index.tolist()]
    assert names.count("best-of") == 6
    assert names.count("chat") == 4
    for row, parent in enumerate(table.parent.tolist()):
        if parent != NO_PARENT:
            assert names[row] == names[parent] == "chat"
            assert table.session[row] == table.session[parent]
            assert table.input_tokens[parent] < table.input_tokens[row]


def test_n_of_the_workload_is_every_class_s_unless_it_gives_its_own() -> None:
    classes = [{**PLAIN, "name": "a", "requests": 2}, {**PLAIN, "name": "b", "requests": 2, "n": 1}]
    table = build(classes=classes, n=3)
    assert np.bincount(table.class_index).tolist() == [6, 2]


def test_outputs_of_a_trace_are_named_after_their_request(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens,request_id\n0,10,2,x\n1,10,3,y\n")
    table = build(trace={"path": str(trace), "format": "generic"}, n=2)
    assert table.request_ids == ["0_x", "1_x", "0_y", "1_y"]
    assert table.output_tokens.tolist() == [2, 2, 3, 3]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"sessions": {"turns": 2, "think_time_s": 0.0}}, "drop `n` or `sessions`"),
        ({"arrival": {"process": "closed_loop", "concurrency": 2}}, "a closed loop sends one request after one end"),
    ],
)
def test_several_outputs_that_something_follows_are_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(**{**PLAIN, **more}, n=2)


def test_several_outputs_of_a_traces_conversations_are_refused(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens,session\n0,10,2,a\n1,20,3,a\n")
    with pytest.raises(InputError, match="say not which of them goes on"):
        build(trace={"path": str(trace), "format": "generic"}, n=2)


def test_a_workload_of_too_many_outputs_is_refused() -> None:
    with pytest.raises(InputError, match="outputs; the limit is"):
        build(**{**PLAIN, "requests": 100_000}, n=16384)


# --- tenants apart -----------------------------------------------------------------------------------


def test_isolated_tenants_share_within_and_not_between() -> None:
    prefix = {"groups": 2, "tokens": 40}
    classes = [{**PLAIN, "name": name, "tenant": name[0]} for name in ("a1", "a2", "b")]
    table, alone = build(classes=classes, prefix=prefix), build(True, classes=classes, prefix=prefix)
    tenant = np.array([table.classes[index].tenant for index in table.class_index.tolist()])
    (ids_of_a, ids_of_b), (all_a, all_b) = (
        [set(each.segment_content_id[tenant == name].tolist()) for name in "ab"] for each in (alone, table)
    )
    assert all_a == all_b == {0, 1}
    assert len(ids_of_a) == len(ids_of_b) == 2
    assert not ids_of_a & ids_of_b
    # Within a tenant nothing changes: equal before, equal now.
    for name in "ab":
        mine = tenant == name
        before, after = table.segment_content_id[mine], alone.segment_content_id[mine]
        assert (before[:, None] == before).tolist() == (after[:, None] == after).tolist()


def test_a_traces_conversation_of_two_tenants_is_two(tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    rows = [("x", "a"), ("x", "b"), ("x", "a"), (None, "b")]
    lines = [
        {"arrival_s": at, "input_tokens": 10 + at, "output_tokens": 2, "tenant": tenant, "session": session}
        for at, (session, tenant) in enumerate(rows)
    ]
    trace.write_text("\n".join(json.dumps({k: v for k, v in line.items() if v is not None}) for line in lines))
    first, second, third, single = build(True, trace={"path": str(trace), "format": "generic"}).session.tolist()
    assert first == third != second
    assert NO_GROUP == single != second


def test_one_tenant_is_left_as_it_is() -> None:
    workload = {**PLAIN, "prefix": {"groups": 3, "tokens": 40}}
    assert build(True, **workload).segment_content_id.tolist() == build(**workload).segment_content_id.tolist()


# --- adapters ----------------------------------------------------------------------------------------


def test_requests_of_two_adapters_have_no_content_in_common() -> None:
    shared = {"prefix": {"groups": 1, "tokens": 60}}
    plain = build(**PLAIN, **shared)
    table = build(**PLAIN, **shared, lora={"adapters": 3})
    assert plain.lora is None
    assert len(np.unique(plain.segment_content_id)) == 1
    assert table.lora is not None
    assert set(table.lora.tolist()) == {1, 2, 3}
    assert table.loras == ("default/1", "default/2", "default/3")
    contents = {(int(lora), segments(table, row)[0][0]) for row, lora in enumerate(table.lora)}
    assert len(contents) == len({content for _, content in contents}) == 3
    for name in ("arrival_ns", "input_tokens", "output_tokens"):
        assert getattr(table, name).tolist() == getattr(plain, name).tolist()


def test_a_conversation_keeps_its_adapter_and_classes_name_theirs() -> None:
    table = build(**PLAIN, sessions={"turns": 4}, lora={"adapters": 3, "skew": 2})
    assert table.lora is not None
    for session in np.unique(table.session):
        assert len(np.unique(table.lora[table.session == session])) == 1
    own = {"share": 1.0, **LENGTHS}
    classes = [{"name": "a", "lora": "sql", **own}, {"name": "b", "lora": "sql", **own}, {"name": "c", **own}]
    mixed = build(requests=60, arrival=CONSTANT, classes=classes)
    assert mixed.loras == ("sql",)
    assert mixed.lora is not None
    assert {(mixed.classes[c].name, n) for c, n in zip(mixed.class_index, mixed.lora, strict=True)} == {
        ("a", 1),
        ("b", 1),
        ("c", 0),
    }


def test_skew_makes_the_first_adapters_the_most_used() -> None:
    plain: dict[str, Any] = {**PLAIN, "requests": 4000}
    even, skewed = (build(**plain, lora={"adapters": 10, "skew": skew}) for skew in (0, 1))
    assert even.lora is not None
    assert skewed.lora is not None
    assert np.mean(even.lora == 1) == pytest.approx(0.1, abs=0.02)
    # 1 / (1 + 1/2 + ... + 1/10)
    assert np.mean(skewed.lora == 1) == pytest.approx(0.341, abs=0.03)
