"""What speculative decoding adds to a step: the draft model's passes, or the search for n-grams on the host.

vLLM 0.32.0 drafts in every step, for every request of its batch (``v1/spec_decode/llm_base_proposer.py``, ``propose``):
a first pass over all the step's tokens, which also fills the draft model's own KV cache, then one pass of one token
per request for each further draft. All of it runs on the target's GPUs, split as the target is. The verification is
the target model's step itself, over the drafts too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sim.errors import InputError
from sim.latency.base import StepShape, decode_run_by_steps, shape_of
from sim.latency.draft_heads import JoiningCost, draft_head, head_problem
from sim.latency.model_spec import ModelSpec
from sim.latency.models import load_model
from sim.latency.parts import UNMEASURED_ERROR, one_part

if TYPE_CHECKING:
    from sim.latency.profile.cost import ProfileCost
    from sim.latency.roofline import RooflineCost
    from sim.scenario.schema import EngineConfig

IntColumn = npt.NDArray[np.int64]

NGRAM_REQUEST_NS = 10_000
"""Host time of looking for one request's last tokens in what it has seen, copies included. An engineer's figure for a
context of some thousand tokens (vLLM searches it in compiled code, in linear time); not measured."""

_SHAPE = (
    "num_prefills",
    "num_prefill_tokens",
    "prefill_context_tokens",
    "prefill_attention_pairs",
    "num_decodes",
    "decode_context_tokens",
    "num_draft_tokens",
    "verify_attention_pairs",
)


_DRAFT_KEYS = ("model", "dtype", "kv_cache_dtype", "tensor_parallel_size", "stand_ins", "evidence")
"""What the summary says of a draft model; the rest is the target's."""


def load_draft_model(engine: EngineConfig, base_dir: Path | None = None) -> ModelSpec | None:
    """The model that drafts for ``engine``, or None. Raises InputError where there is no such model."""
    speculative = engine.speculative
    if speculative is None:
        return None
    if speculative.has_head:
        model, method = load_model(engine.model, base_dir), speculative.method
        problem = head_problem(model, method, speculative.num_speculative_tokens)
        if problem is not None:
            raise InputError(f"engine.speculative: {problem}")
        return draft_head(model, method)
    if speculative.draft_model is None:
        return None
    return load_model(speculative.draft_model, base_dir, key="engine.speculative.draft_model")


def head_of(engine: EngineConfig) -> str | None:
    """The method of a head that drafts for ``engine``; None = there is none."""
    speculative = engine.speculative
    return speculative.method if speculative is not None and speculative.has_head else None


def draft_engine(engine: EngineConfig) -> EngineConfig:
    """``engine`` as the draft model has it: the same GPUs and split; weights that are quantised for the target stay
    in 16 bits here, as in the checkpoints of small models and of EAGLE's heads. An MTP layer is the target's own."""
    speculative = engine.speculative
    if speculative is not None and speculative.method == "mtp":
        return engine.model_copy(update={"speculative": None})
    if speculative is None or (speculative.draft_model is None and not speculative.has_head):
        raise InputError("engine.speculative.draft_model: there is none")
    is_quantised = engine.dtype in ("fp8", "int8", "int4")
    return engine.model_copy(
        update={
            "model": speculative.draft_model or engine.model,
            "dtype": "bfloat16" if is_quantised else engine.dtype,
            "enable_expert_parallel": False,
            "speculative": None,
        }
    )


class SpeculativeCost:
    """The step cost of a target model, with the cost of drafting ``num_speculative_tokens`` for each request."""

    def __init__(
        self,
        target: ProfileCost | RooflineCost,
        draft: ProfileCost | RooflineCost | None,
        num_speculative_tokens: int,
        joining: JoiningCost | None = None,
    ) -> None:
        """``draft``: None = n-grams, which take host time only. ``joining``: what a head has beside its layer."""
        self.target = target
        self.joining = joining
        self.draft = draft
        self.num_speculative_tokens = num_speculative_tokens
        self.kind = target.kind
        self.pipeline_stages = target.pipeline_stages

    def draft_ns(self, shape: StepShape) -> int:
        """Accelerator time of making the next drafts of all requests in this step."""
        num_prefills, num_decodes = shape.num_prefills, shape.num_decodes
        batch = num_prefills + num_decodes
        if self.draft is None or not batch:
            return 0
        step_ns, joining = self.draft.step_ns, self.joining
        # What a request has beyond one token (its drafts; for a draft model, the token that was just sampled) goes
        # through the layers, but only the last token of each has a row in the LM head. A head takes the sampled token
        # in the place of the first one, with the hidden state before it.
        sampled = batch if joining is None else 0
        total_ns = step_ns(
            num_prefills,
            shape.num_prefill_tokens + shape.num_draft_tokens + sampled,
            shape.prefill_context_tokens,
            shape.prefill_attention_pairs,
            num_decodes,
            shape.decode_context_tokens + (num_decodes if sampled else 0),
            batch,
            0,
            shape.verify_attention_pairs,
        )
        context = shape.prefill_context_tokens + shape.decode_context_tokens + batch + sampled
        if joining is not None:
            total_ns += joining.ns(shape.num_tokens, is_first=True)
            total_ns += (self.num_speculative_tokens - 1) * joining.ns(batch, is_first=False)
        for _ in range(self.num_speculative_tokens - 1):
            total_ns += step_ns(0, 0, 0, 0, batch, context, batch)
            context += batch
        return total_ns

    def gpu_ns(self, shape: StepShape) -> int:
        """Accelerator time of this step: verification, and the next drafts."""
        return self.target.gpu_ns(shape) + self.draft_ns(shape)

    def step_ns(self, *counts: int, **further: int) -> int:
        """``gpu_ns`` from the counts of a ``StepShape``."""
        return self.gpu_ns(shape_of(*counts, **further))

    def host_ns(self, shape: StepShape) -> int:
        """Host time of this step."""
        searches = 0 if self.draft is not None else shape.num_prefills + shape.num_decodes
        return self.target.host_ns(shape) + NGRAM_REQUEST_NS * searches

    def decode_run_ns(self, num_decodes: int, decode_context_tokens: int, num_steps: int) -> IntColumn:
        """``gpu_ns`` of ``num_steps`` decode steps in a row without anything to verify."""
        return decode_run_by_steps(self, num_decodes, decode_context_tokens, num_steps)

    def empty_step_ns(self) -> int:
        """As the target's."""
        return self.target.empty_step_ns()

    def breakdown(self, shape: StepShape) -> dict[str, float]:
        """The target's terms, in its unit, and ``draft``; their sum is ``gpu_ns`` up to rounding."""
        ns_per_unit = 1e9 if self.kind == "roofline" else 1
        return {**self.target.breakdown(shape), "draft": self.draft_ns(shape) / ns_per_unit}

    def terms(self, columns: Mapping[str, IntColumn]) -> dict[str, IntColumn]:
        """Nanoseconds by term of recorded steps: the target's, and ``draft`` where a model drafts. Profiles only."""
        if self.target.kind != "profile":
            raise TypeError(f"a {self.target.kind} cost has no terms of recorded steps")
        rows = zip(*(columns[name].tolist() for name in _SHAPE), strict=True)
        draft = np.array([self.draft_ns(StepShape(**dict(zip(_SHAPE, row, strict=True)))) for row in rows], np.int64)
        terms: dict[str, IntColumn] = self.target.terms({**columns, "gpu_ns": columns["gpu_ns"] - draft})  # type: ignore[union-attr]
        return terms if self.draft is None else {**terms, "draft": draft}

    def describe(self) -> dict[str, object]:
        """The target's description, and the draft model's."""
        drafts: dict[str, object] = {"num_speculative_tokens": self.num_speculative_tokens}
        if self.draft is None:
            drafts["ngram_host_overhead_per_request_ms"] = NGRAM_REQUEST_NS / 1e6
        else:
            known = self.draft.describe()
            drafts.update({name: known[name] for name in _DRAFT_KEYS if name in known})
        if self.joining is not None:
            what = f"a head of `method: {self.joining.method}`, taken to be of the model's shape"
            drafts.update(method=self.joining.method, evidence={"all": one_part("estimate", UNMEASURED_ERROR, what)})
        return {**self.target.describe(), "draft": drafts}
