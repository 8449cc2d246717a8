"""What an output token costs beside a prompt token: the default weight of policies that rank by expected work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.latency.base import StepCost, StepShape
from sim.latency.memory import MemoryPlan

if TYPE_CHECKING:
    from sim.scenario.schema import EngineConfig


def token_weight(engine: EngineConfig, cost: StepCost, memory: MemoryPlan) -> int:
    """``prompt_tokens_per_output_token`` of a scenario's engine."""
    return prompt_tokens_per_output_token(
        cost,
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        max_model_len=engine.max_model_len,
        kv_capacity_tokens=memory.kv_capacity_tokens,
    )


def prompt_tokens_per_output_token(
    cost: StepCost, *, max_num_seqs: int, max_num_batched_tokens: int, max_model_len: int, kv_capacity_tokens: int
) -> int:
    """How many prompt tokens take as long as one output token in an engine with all seats taken, at least 1.

    A prompt token is its part of a step that computes one prompt as long as the step's budget. An output token is its
    part of a step of ``max_num_seqs`` decodes; each has a context of half that prompt, or of half its seat's part of
    the KV pool where that is less. Llama-3.1-8B on an H100 with 64 seats and a budget of 2,048: a decode takes
    0.166 ms of a step of 10.6 ms, a prompt token 0.022 ms of a step of 44.6 ms, so 8; with 256 seats it is 3. Where
    every step takes equally long and one request runs at a time, an output token is a step, as a budget of prompt
    tokens is: the weight is the budget.
    """
    prompt = min(max_num_batched_tokens, max_model_len)
    prefill = StepShape(
        num_prefills=1,
        num_prefill_tokens=prompt,
        prefill_context_tokens=prompt,
        prefill_attention_pairs=prompt * prompt,
        num_sampled=1,
    )
    context = max(1, min(prompt, kv_capacity_tokens // max_num_seqs) // 2)
    decodes = StepShape(
        num_decodes=max_num_seqs, decode_context_tokens=max_num_seqs * context, num_sampled=max_num_seqs
    )
    output_ns, prompt_ns = cost.gpu_ns(decodes) * prompt, cost.gpu_ns(prefill) * max_num_seqs
    return max(1, (2 * output_ns + prompt_ns) // (2 * prompt_ns))
