"""The words of ``docs/accuracy.md``."""

from __future__ import annotations

from benchmarks.accuracy_sets import LLAMA, MINIMAX
from benchmarks.accuracy_single import SINGLE

LEFT_OUT = (LLAMA, MINIMAX, SINGLE)
"""Sets that are not in the front table: two whose rows InferenceX has too, and runs measured one at a time."""

INTRO = """
    How far predictions are from vLLM engines that were measured, in which cases that is known, and in which it is not.
    Errors are |predicted / measured - 1|."""

KINDS = """
    Medians over runs, with defaults: nothing is fitted to a run of this table. Causes of errors were looked for in the
    runs at a low rate and in other configurations of InferenceX than these (the training half), not in the rest. "Fixed
    clients": each sends its next request when its last one ended."""

NOT_VALIDATED = (
    """**Versions.** Whole engines were measured under vLLM {versions}. Others, the default 0.32.0 too, have scheduling
    that is compared with vLLM's own step by step, and step times that no whole run was compared with.""",
    """**GPUs without a profile** (RTX 4090, B300, GB200, L4 and others): step times are a roofline's. One run is
    known, an RTX 4090: TTFT was predicted 30 % too long at three times its capacity, TPOT 4 %.""",
    """**A100 and L40S** beyond 8B and 14B in BF16 on one GPU; **FP8 there; INT8, INT4 (AWQ, GPTQ)** anywhere but for
    one old eager run, which was predicted 30 % too fast; NVFP4 and MXFP4.""",
    """**Pipeline parallelism, data-parallel ranks** (one run, TTFT 39 % too short), **several replicas behind a router,
    speculative decoding, swapping, sliding windows**: not yet measured as whole runs.""",
    """**Prompts above 16,000 tokens, vision, LoRA, other engines than vLLM.**""",
    """**Tails** beyond p99, and p99 of fixed clients: only means were published.""",
)
"""``{versions}``: those of the measured engines."""

OWN_FIT = """
    A run of twenty minutes at low load is enough to fit step costs, host and client times to your engine
    ([fit.md](fit.md)). {count} predictions of a run after a fit to one other run of that GPU and kind of model
    are off, in the median, by: {errors}. What a fit does not repair is said there too."""
