"""What the hot path charges for a step, against the same sums written out plainly, for random steps."""

from __future__ import annotations

import random
from dataclasses import astuple
from math import isqrt
from typing import Any

import pytest
from engines import engine_config

from sim.latency.base import StepCost, StepShape, shape_of
from sim.latency.build import build_step_cost
from sim.latency.lockstep_cost import DUMMY_TOKENS, LockstepCost
from sim.latency.profile.cost import ProfileCost
from sim.latency.profile.integers import SLOPE_BITS, Segments
from sim.latency.sliding_window import within
from sim.latency.slowed import slowed
from sim.latency.speculative_cost import SpeculativeCost
from sim.latency.tables import TabulatedCost
from sim.scenario.schema import LatencyConfig

LLAMA = {"model": "llama-3.1-8b", "gpu": "h100-sxm"}
WINDOWED = {"model": "mistral-7b", "gpu": "h100-sxm", "max_model_len": 16_384}
RANKS = {"model": "qwen3-30b-a3b", "gpu": "h200-sxm", "data_parallel_size": 4, "enable_expert_parallel": True}
DRAFTS = {
    "model": "llama-3.1-70b",
    "gpu": "h100-sxm",
    "tensor_parallel_size": 4,
    "speculative": {"method": "draft_model", "draft_model": "llama-3.2-1b", "num_speculative_tokens": 4},
}


def cost_of(kind: str, engine: dict[str, Any]) -> Any:
    return build_step_cost(engine_config(**engine), LatencyConfig.model_validate({"kind": kind}))


def random_shape(draw: random.Random, drafts: int = 0) -> StepShape:
    chunks = [
        (draw.randrange(1, 3_000), draw.choice([0, draw.randrange(8_000)])) for _ in range(draw.choice([0, 1, 3]))
    ]
    decodes = draw.choice([0, 1, draw.randrange(2, 40)])
    context = sum(draw.randrange(1, 8_000) for _ in range(decodes))
    return StepShape(
        num_prefills=len(chunks),
        num_prefill_tokens=sum(chunk for chunk, _ in chunks),
        prefill_context_tokens=sum(chunk + prior for chunk, prior in chunks),
        prefill_attention_pairs=sum(chunk * (2 * prior + chunk) for chunk, prior in chunks),
        num_decodes=decodes,
        decode_context_tokens=context,
        num_sampled=decodes + draw.randint(0, len(chunks)),
        swap_bytes=draw.choice([0, 0, draw.randrange(1 << 30)]),
        num_draft_tokens=drafts * decodes,
        verify_attention_pairs=(drafts + 1) * context if drafts else 0,
    )


def random_shapes(seed: int, drafts: int = 0) -> list[StepShape]:
    draw = random.Random(seed)
    return [random_shape(draw, drafts) for _ in range(300)]


def line_at(segments: Segments, count: int) -> int:
    place = max([i for i, knot in enumerate(segments.knots) if knot <= count], default=0)
    return segments.values[place] + ((count - segments.knots[place]) * segments.slopes[place] >> SLOPE_BITS)


def profiled_ns(cost: ProfileCost, shape: StepShape) -> int:
    requests = shape.num_prefills + shape.num_decodes
    ns = cost.token_terms.ns(shape.num_tokens) + cost.row_terms.ns(requests + shape.num_draft_tokens)
    if shape.num_decodes:
        made = cost._mixed_segments if shape.num_prefills else cost._decode_segments
        attention = line_at(made(shape.num_decodes), shape.decode_context_tokens)
        ns += max(attention, cost._verify_pair.ns(shape.verify_attention_pairs))
    if shape.num_prefills:
        num, tokens, window = shape.num_prefills, shape.num_prefill_tokens, cost._window
        pairs = min(shape.prefill_attention_pairs // 2, tokens * window)
        context = min(shape.prefill_context_tokens, tokens + num * window)
        attention = line_at(cost._prefill_segments(num), max(1, isqrt(2 * pairs // num)))
        if shape.prefill_context_tokens > tokens:
            attention = max(attention, line_at(cost._prior_segments(num), context))
        ns += attention
    return ns + cost._swap.ns(shape.swap_bytes)


def tabulated_ns(cost: TabulatedCost, shape: StepShape) -> int:
    seen = shape if cost._window is None else within(shape, cost._window)
    prefill = max(
        cost._prefill_pairs.ns(seen.prefill_attention_pairs), cost._prefill_context.ns(seen.prefill_context_tokens)
    )
    decode = max(
        cost._first.context.ns(seen.decode_context_tokens), cost._prefill_pairs.ns(2 * seen.verify_attention_pairs)
    )
    fixed = cost.tokens_ns(shape.num_tokens) + cost._sampled.ns(shape.num_sampled)
    return fixed + prefill + decode + cost._swap.ns(shape.swap_bytes)


def plain_ns(cost: StepCost, shape: StepShape) -> int:
    if isinstance(cost, ProfileCost):
        return profiled_ns(cost, shape)
    assert isinstance(cost, TabulatedCost)
    return tabulated_ns(cost, shape)


def in_counts(cost: StepCost, shape: StepShape) -> int:
    *counts, swap_bytes, drafts, pairs = astuple(shape)[:10][:10]
    assert shape_of(*counts, drafts, pairs, swap_bytes) == shape
    return cost.step_ns(*counts, drafts, pairs, swap_bytes)


@pytest.mark.parametrize("engine", [LLAMA, WINDOWED], ids=["full", "window"])
@pytest.mark.parametrize("kind", ["profile", "roofline"])
@pytest.mark.parametrize("drafts", [0, 3])
def test_a_step_costs_its_terms(kind: str, engine: dict[str, Any], drafts: int) -> None:
    cost = cost_of(kind, {**engine, "preemption": "swap"})
    for shape in random_shapes(1, drafts):
        assert cost.gpu_ns(shape) == in_counts(cost, shape) == plain_ns(cost, shape)
        slow = slowed(cost, 1.7)
        assert slow.gpu_ns(shape) == in_counts(slow, shape) == round(plain_ns(cost, shape) * 1.7)


@pytest.mark.parametrize("kind", ["profile", "roofline"])
def test_a_step_of_ranks_costs_the_slowest_and_what_they_do_together(kind: str) -> None:
    cost = cost_of(kind, RANKS)
    assert isinstance(cost, LockstepCost)
    draw = random.Random(2)
    padded = 0
    for _ in range(200):
        shapes = [draw.choice([StepShape(), random_shape(draw)]) for _ in range(4)]
        counts = [shape.num_tokens or DUMMY_TOKENS for shape in shapes]
        fitting = [size for size in cost._graphs if size >= max(counts)]
        sizes = [min(fitting)] * 4 if fitting else counts
        padded += bool(fitting)
        own = [
            plain_ns(cost.own, shape) + cost.own.tokens_ns(size) - cost.own.tokens_ns(shape.num_tokens)
            for shape, size in zip(shapes, sizes, strict=True)
        ]
        step = cost.group_step(shapes)
        assert step.own_ns == own
        assert (step.padded_tokens, step.group_tokens) == (sizes, sum(sizes))
        assert step.gpu_ns == max(own) + cost._together.ns(sum(sizes))
        assert cost.gpu_ns(shapes[0]) == in_counts(cost, shapes[0])
    assert 20 < padded < 180


@pytest.mark.parametrize("kind", ["profile", "roofline"])
def test_drafts_cost_a_first_pass_and_a_decode_step_for_each_further_one(kind: str) -> None:
    cost = cost_of(kind, DRAFTS)
    assert isinstance(cost, SpeculativeCost)
    assert cost.draft is not None
    for shape in random_shapes(3, 4):
        batch = shape.num_prefills + shape.num_decodes
        drafting = 0
        if batch:
            first = StepShape(
                num_prefills=shape.num_prefills,
                num_prefill_tokens=shape.num_tokens + shape.num_prefills,
                prefill_context_tokens=shape.prefill_context_tokens,
                prefill_attention_pairs=shape.prefill_attention_pairs,
                num_decodes=shape.num_decodes,
                decode_context_tokens=shape.decode_context_tokens + shape.num_decodes,
                num_sampled=batch,
                verify_attention_pairs=shape.verify_attention_pairs,
            )
            context = shape.prefill_context_tokens + shape.decode_context_tokens + 2 * batch
            further = cost.draft.decode_run_ns(batch, context, 3)
            drafting = plain_ns(cost.draft, first) + int(further.sum())
        assert cost.draft_ns(shape) == drafting
        assert cost.gpu_ns(shape) == in_counts(cost, shape) == plain_ns(cost.target, shape) + drafting


@pytest.mark.parametrize("engine", [LLAMA, WINDOWED, RANKS, DRAFTS], ids=["full", "window", "ranks", "drafts"])
@pytest.mark.parametrize("kind", ["profile", "roofline"])
def test_decodes_in_a_row_cost_what_single_steps_cost(kind: str, engine: dict[str, Any]) -> None:
    cost = cost_of(kind, engine)
    draw = random.Random(4)
    for _ in range(12):
        size, length = draw.randrange(1, 30), draw.choice([1, 2, 70])
        context = size * draw.randrange(1, 5_000)
        run = cost.decode_run_ns(size, context, length).tolist()
        assert run == [cost.step_ns(0, 0, 0, 0, size, context + i * size, size) for i in range(length)]
