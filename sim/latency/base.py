"""What a step costs: the shape of a step, and the interface every latency model answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


@dataclass(slots=True)
class StepShape:
    """One step as small sums, so that its cost does not depend on a loop over the batch.

    All counts are of one model replica (before tensor parallelism divides them). A decode is a
    request that computes one token, the one after everything it has already computed, and with it
    the draft tokens that are to be verified; every other scheduled request is a prefill chunk
    (recomputed tokens included).
    """

    num_prefills: int = 0
    num_prefill_tokens: int = 0
    prefill_context_tokens: int = 0
    """Sum over chunks of (prior + chunk): the KV that the chunks' attention reads."""
    prefill_attention_pairs: int = 0
    """Sum over chunks of chunk * (2 * prior + chunk): twice the query-key pairs of causal attention."""
    num_decodes: int = 0
    decode_context_tokens: int = 0
    """Sum over decodes of (computed + 1 + drafts): the KV that their attention reads."""
    num_sampled: int = 0
    """Rows that go through the LM head and the sampler."""
    swap_bytes: int = 0
    """KV moved between GPU and host before this step (``preemption: swap``)."""
    num_draft_tokens: int = 0
    """Speculative decoding: draft tokens of all decodes, verified in this step."""
    verify_attention_pairs: int = 0
    """Where drafts are verified: sum over decodes of (1 + drafts) * KV read, the query-key pairs; else 0."""
    num_loras: int = 0
    """LoRA adapters of the step's requests."""
    num_lora_tokens: int = 0
    """Tokens of ``num_tokens`` that go through an adapter too."""
    num_lora_loads: int = 0
    """Adapters copied into slots on the GPU before this step, ..."""
    lora_load_bytes: int = 0
    """... their bytes, over all GPUs, ..."""
    num_lora_reads: int = 0
    """... and those of them that were read from their files."""
    num_images: int = 0
    """Images that the vision encoder computes before the step's layers, ..."""
    num_image_embeds: int = 0
    """... the embeddings it makes of them, ..."""
    image_attention_pairs: int = 0
    """... and the sum of their squares: each sees those of its own image."""

    @property
    def num_tokens(self) -> int:
        """Tokens in the step's GEMMs."""
        return self.num_prefill_tokens + self.num_decodes + self.num_draft_tokens

    def clear(self) -> None:
        """Back to an empty step."""
        self.num_prefills = self.num_prefill_tokens = 0
        self.prefill_context_tokens = self.prefill_attention_pairs = 0
        self.num_decodes = self.decode_context_tokens = 0
        self.num_sampled = self.swap_bytes = 0
        self.num_draft_tokens = self.verify_attention_pairs = 0
        self.num_loras = self.num_lora_tokens = 0
        self.num_lora_loads = self.lora_load_bytes = self.num_lora_reads = 0
        self.num_images = self.num_image_embeds = self.image_attention_pairs = 0


class StepCost(Protocol):
    """A latency model. Integer arithmetic only at run time: integer nanoseconds in, integer out.

    A step of a synchronous engine takes ``host_ns + gpu_ns``; an asynchronous one hides the host
    time behind the step before it. With pipeline parallelism ``gpu_ns`` is one stage's time, and
    ``pipeline_stages`` of them follow each other.
    """

    kind: str
    """``constant``, ``roofline`` or ``profile``."""
    pipeline_stages: int

    def gpu_ns(self, shape: StepShape) -> int:
        """Accelerator time of one stage of this step, at least 1."""
        ...

    def step_ns(
        self,
        num_prefills: int,
        num_prefill_tokens: int,
        prefill_context_tokens: int,
        prefill_attention_pairs: int,
        num_decodes: int,
        decode_context_tokens: int,
        num_sampled: int,
        num_draft_tokens: int = 0,
        verify_attention_pairs: int = 0,
        swap_bytes: int = 0,
    ) -> int:
        """``gpu_ns`` of the shape with these counts, for loops that hold them as plain numbers."""
        ...

    def host_ns(self, shape: StepShape) -> int:
        """Host time of this step: scheduling, launch, sampling's copy back."""
        ...

    def decode_run_ns(self, num_decodes: int, decode_context_tokens: int, num_steps: int) -> npt.NDArray[np.int64]:
        """``gpu_ns`` of ``num_steps`` pure decode steps in a row, shape (num_steps,).

        Element i equals, bit for bit, ``gpu_ns`` of the shape with ``num_decodes`` decodes and
        samples and ``decode_context_tokens + i * num_decodes`` tokens of context.
        """
        ...

    def empty_step_ns(self) -> int:
        """Time of a step that schedules nothing (``constant``: its ``step_s``; else the host time), at least 1."""
        ...

    def describe(self) -> dict[str, object]:
        """What the summary says of this model: kind, whether it is an estimate, its parameters."""
        ...


def shape_of(
    num_prefills: int,
    num_prefill_tokens: int,
    prefill_context_tokens: int,
    prefill_attention_pairs: int,
    num_decodes: int,
    decode_context_tokens: int,
    num_sampled: int,
    num_draft_tokens: int = 0,
    verify_attention_pairs: int = 0,
    swap_bytes: int = 0,
) -> StepShape:
    """The shape that ``StepCost.step_ns`` is told in counts."""
    return StepShape(
        num_prefills=num_prefills,
        num_prefill_tokens=num_prefill_tokens,
        prefill_context_tokens=prefill_context_tokens,
        prefill_attention_pairs=prefill_attention_pairs,
        num_decodes=num_decodes,
        decode_context_tokens=decode_context_tokens,
        num_sampled=num_sampled,
        swap_bytes=swap_bytes,
        num_draft_tokens=num_draft_tokens,
        verify_attention_pairs=verify_attention_pairs,
    )


def decode_run_by_steps(
    cost: StepCost, num_decodes: int, decode_context_tokens: int, num_steps: int
) -> npt.NDArray[np.int64]:
    """``StepCost.decode_run_ns`` of a cost that has no shorter way: step by step."""
    contexts = (decode_context_tokens + step * num_decodes for step in range(num_steps))
    shapes = (
        StepShape(num_decodes=num_decodes, decode_context_tokens=context, num_sampled=num_decodes)
        for context in contexts
    )
    return np.array([cost.gpu_ns(shape) for shape in shapes], dtype=np.int64)
