"""The words of ``docs/accuracy.md``."""

from __future__ import annotations

from benchmarks.accuracy_sets import LLAMA, MINIMAX
from benchmarks.accuracy_single import A100_AWQ, RTX4090_LLAMA, RTX_MOE, RTX_MOE_LINK, SINGLE

LEFT_OUT = (LLAMA, MINIMAX, SINGLE)
"""Sets that are not in the front table: two whose rows InferenceX has too, and runs measured one at a time."""

INTRO = """
    How far predictions are from vLLM engines that were measured, in which cases that is known, and in which it is not.
    Errors are |predicted / measured - 1|."""

KINDS = """
    Medians over runs, with defaults: no run has a fit of its own. Client time and launches were chosen on some of them
    ([tables](accuracy-tables.md) say which). Causes of errors were looked for in the
    runs at a low rate and in other configurations of InferenceX than these (the training half), not in the rest. "Fixed
    clients": each sends its next request when its last one ended."""

NOT_VALIDATED = (
    """**Versions.** Whole engines were measured under vLLM {versions}. Others, the default 0.32.0 too, have scheduling
    that is compared with vLLM's own step by step, and step times that no whole run was compared with.""",
    """**GPUs without a profile** (RTX 4090, H20, GH200, L4 and others): step times are a roofline's. One run is known,
    an RTX 4090 at three times its capacity: {rtx4090}. **B300 and GB200** have one, and no run to compare with.""",
    """**A100 and L40S** beyond 8B and 14B in BF16 on one GPU; **FP8 there; INT8, INT4 (AWQ, GPTQ)** of dense
    models but for one old eager run ({awq}); **NVFP4**.""",
    """**Pipeline parallelism, data-parallel ranks** (one run: {ranks}; with the link that its owners
    state {linked}), **several replicas behind a router, speculative
    decoding, swapping, windows of all layers, layers with a state**: not yet measured as whole runs.""",
    """**Prompts above 16,000 tokens, vision, LoRA, other engines than vLLM.**""",
    """**Tails** beyond p99, and p99 of fixed clients: only means were published.""",
)
"""``{versions}``: those of the measured engines; ``{rtx4090}`` and the like: signed errors of ``ONE_RUN``."""

ONE_RUN = {"rtx4090": RTX4090_LLAMA, "awq": A100_AWQ, "ranks": RTX_MOE, "linked": RTX_MOE_LINK}

OWN_FIT = """
    A run of twenty minutes at low load is enough to fit step costs, host and client times to your engine
    ([fit.md](fit.md)). {count} predictions of a run after a fit to one other run of that GPU and kind of model
    are off, in the median, by: {errors}. What a fit does not repair is said there too."""
