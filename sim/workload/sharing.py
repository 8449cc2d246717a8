"""What requests share: several outputs of one prompt share it, tenants whose caches are isolated share nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sim.errors import InputError
from sim.seeds import rng
from sim.workload.arrivals import MAX_REQUESTS
from sim.workload.lengths import draw_lengths
from sim.workload.table import NO_GROUP, IntColumn, RequestTable
from sim.workload.trace_table import segments_of
from sim.workload.traffic_plan import ClassPlan, Plan


def with_outputs(table: RequestTable, plan: Plan, seed: int) -> RequestTable:
    """The table with ``n`` rows for each prompt, one after the other: the child requests of vLLM's ``ParentRequest``.

    The rows of a prompt have the whole prompt in common, and nothing they generate. Example: a row of 40 tokens with
    n = 4 becomes four rows of 40 tokens, each with one more segment that ends at 40.
    """
    per_class = np.array([info.num_outputs for info in table.classes], dtype=np.int64)
    counts = per_class[table.class_index]
    if not np.any(counts > 1):
        return table
    total = int(counts.sum())
    if total > MAX_REQUESTS:
        raise InputError(f"workload.n: {total:,} outputs; the limit is {MAX_REQUESTS:,} requests")
    in_session = (counts > 1) & (table.session != NO_GROUP)
    if np.any(in_session):
        raise InputError(
            "workload.n: several outputs of a conversation's turn say not which of them goes on; give conversations "
            "(`sessions`, or a trace's) n: 1"
        )
    prompt = np.repeat(np.arange(len(table)), counts)
    child = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    expanded = _shared_prompts(_repeated(table, prompt, counts), prompt, counts)
    if table.request_ids is not None:
        ids, several = table.request_ids, counts[prompt] > 1
        expanded.request_ids = [
            f"{number}_{ids[row]}" if is_child else ids[row]
            for row, number, is_child in zip(prompt.tolist(), child.tolist(), several.tolist(), strict=True)
        ]
    for arrivals in plan.arrivals:
        for member in arrivals.members:
            _draw_outputs(expanded, child, member, seed)
    return expanded


def _repeated(table: RequestTable, prompt: IntColumn, counts: IntColumn) -> RequestTable:
    """Row ``prompt[i]`` of the table as row i; a row that is waited for is one that has a single output."""
    first = np.cumsum(counts) - counts
    segments = segments_of(prompt, np.diff(table.segment_offsets))
    parent = table.parent[prompt]
    return replace(
        table,
        arrival_ns=table.arrival_ns[prompt],
        input_tokens=table.input_tokens[prompt],
        output_tokens=table.output_tokens[prompt],
        max_tokens=table.max_tokens[prompt],
        priority=table.priority[prompt],
        class_index=table.class_index[prompt],
        parent=np.where(parent < 0, parent, first[parent]),
        deadline_ns=table.deadline_ns[prompt],
        expected_output_tokens=table.expected_output_tokens[prompt],
        session=table.session[prompt],
        lora=None if table.lora is None else table.lora[prompt],
        images=None if table.images is None else table.images.take(prompt),
        segment_offsets=_offsets(np.diff(table.segment_offsets)[prompt]),
        segment_content_id=table.segment_content_id[segments],
        segment_end_tokens=table.segment_end_tokens[segments],
        sender=None if table.sender is None else table.sender[prompt],
        prompt=prompt,
    )


def _offsets(counts: IntColumn) -> IntColumn:
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)


def _shared_prompts(table: RequestTable, prompt: IntColumn, counts: IntColumn) -> RequestTable:
    """One more segment for each row of several: the rest of its prompt, where segments do not cover it all."""
    offsets = table.segment_offsets
    has_segments = np.diff(offsets) > 0
    covered = np.zeros(len(prompt), dtype=np.int64)
    covered[has_segments] = table.segment_end_tokens[offsets[1:][has_segments] - 1]
    rows = np.flatnonzero((counts[prompt] > 1) & (covered < table.input_tokens))
    first_id = 1 + int(table.segment_content_id.max(initial=-1))
    extra = np.zeros(len(prompt), dtype=np.int64)
    extra[rows] = 1
    at = offsets[1:][rows]
    return replace(
        table,
        segment_offsets=_offsets(np.diff(offsets) + extra),
        segment_content_id=np.insert(table.segment_content_id, at, first_id + prompt[rows]),
        segment_end_tokens=np.insert(table.segment_end_tokens, at, table.input_tokens[rows]),
    )


def _draw_outputs(table: RequestTable, child: IntColumn, member: ClassPlan, seed: int) -> None:
    """Lengths of the second and further outputs, where clients allow more than comes out.

    Without ``max_tokens`` outputs end by their length, which is one for all outputs of a prompt.
    """
    if member.info.num_outputs == 1 or member.max_tokens is None or member.output_tokens is None:
        return
    index = next(place for place, info in enumerate(table.classes) if info is member.info)
    for number in range(1, member.info.num_outputs):
        rows = np.flatnonzero((table.class_index == index) & (child == number))
        drawn = draw_lengths(member.output_tokens, rng(seed, "output_tokens", member.name, str(number)), len(rows))
        table.output_tokens[rows] = np.minimum(drawn, table.max_tokens[rows])


def with_isolated_tenants(table: RequestTable) -> RequestTable:
    """The table with contents that differ between tenants, as vLLM's ``cache_salt`` makes block hashes differ.

    Content 3 of tenants a and b becomes two contents, and a conversation that two tenants have becomes two.
    """
    tenants = list(dict.fromkeys(info.tenant for info in table.classes))
    if len(tenants) == 1:
        return table
    of_class = np.array([tenants.index(info.tenant) for info in table.classes], dtype=np.int64)
    return with_own_contents(table, of_class[table.class_index])


def with_own_contents(table: RequestTable, group: IntColumn) -> RequestTable:
    """The table with contents that differ between groups of rows: tenants, or LoRA adapters, whose KV of equal tokens
    differs (``vllm/v1/core/kv_cache_utils.py`` hashes the adapter's name into each block)."""
    num_groups = int(group.max(initial=0)) + 1
    of_segment = np.repeat(group, np.diff(table.segment_offsets))
    session = table.session.copy()
    in_session = session != NO_GROUP
    session[in_session] = _numbered(session[in_session], group[in_session], num_groups)
    return replace(
        table,
        segment_content_id=_numbered(table.segment_content_id, of_segment, num_groups),
        session=session,
    )


def _numbered(values: IntColumn, group: IntColumn, num_groups: int) -> IntColumn:
    """A number for each pair of value and group, in the order of the pairs."""
    numbers: IntColumn = np.unique(values * num_groups + group, return_inverse=True)[1].astype(np.int64)
    return numbers
