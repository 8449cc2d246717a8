"""The words of ``docs/accuracy-tables.md``: what every set is, what is assumed, what is off."""

from __future__ import annotations

import textwrap

from benchmarks.accuracy_causes import FOUND, LEFT, LEFT_FIRST_TOKENS
from benchmarks.accuracy_fit import LITE_FITTED
from benchmarks.accuracy_inferencex import GROUPS as INFERENCEX
from benchmarks.accuracy_open_loop import LITE_0151, QWEN_0230
from benchmarks.accuracy_sets import (
    LLAMA,
    MINIMAX,
    QWEN,
    RTX_LLAMA,
    RTX_QWEN,
    RTX_QWEN_LINK,
)
from benchmarks.accuracy_single import OWNERS_LINK, SINGLE

WIDTH = 140


def flow(text: str, indent: str = "") -> str:
    """Paragraphs (apart by an empty line) filled to the page's width; ``indent`` before all lines but the first."""
    paragraphs = text.strip().split("\n\n")
    filled = (
        textwrap.fill(
            " ".join(each.split()), WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
        for each in paragraphs
    )
    return "\n\n".join(filled)


ABOUT: dict[str, str] = {
    LLAMA: """
        Client and engine as in InferenceMAX's public script for this model (`70b_fp8_h100_slurm.sh` in
        SemiAnalysisAI/InferenceX): each client sends its next request when its last one ended, ten requests per
        client, all start at once and every request counts; lengths uniform from 0.8 times the stated length up to
        it, in and out; `max_num_seqs` = clients. That the points are of that sweep is read off aiconfigurator's own
        file, which names it; the sweep's image is vLLM 0.10.2. The script writes FP8 KV, asynchronous scheduling and
        more into a file that it passes by `--config=config.yaml`, and 0.10.2 reads none that is not passed by two
        words: KV was in 16 bits, as its queues show (59 s at TP 2, 64 clients, 8,192 in), and scheduling was
        synchronous.""",
    MINIMAX: """
        Client as above, engine as in `minimaxm2.5_fp8_h100.sh` of the same repository: TP 4 with expert
        parallelism, `max_num_seqs` 256, else vLLM 0.18's defaults (`max_num_batched_tokens` 8,192, asynchronous
        scheduling). The script captures CUDA graphs piecewise only, so attention is launched from the host; that is
        not modelled.""",
    QWEN: """
        vLLM 0.12, which scheduled asynchronously only when asked (default since 0.14: release notes, pull request
        27614). The client is not recorded; assumed are fixed lengths, ten requests per client, the next request sent
        when the last one ended, and no `temperature`, so that the model's own `top_p` is sampled. Engine as the
        generator of vLLM benchmarks in ai-dynamo/aiconfigurator sets it (`rule_plugin/benchmark/vllm.rule`):
        `max_num_batched_tokens` = clients + input + 1,500, `max_model_len` = input + output + 1,500. That rule was
        found while looking for a token budget that explains the TTFT of nine of the points; 2,048 and 8,192 do not.
        Half of the points, drawn with a fixed seed, are for training (host time, see above; pauses of 5, 10 and 20 ms
        between a client's requests were tried on them and fitted TTFT worse than none). They are in the table below
        and not in the scores.""",
    RTX_LLAMA: """
        300 requests of ShareGPT at 10/s on vLLM 0.19.0, replayed with each request's own arrival at the engine
        (`queued_ts`), its lengths, and the settings in the run's own file (`max_num_seqs` 128,
        `max_num_batched_tokens` 2,048); asynchronous scheduling, as is the default of that version. Built-in
        profile `rtx-pro-6000`.""",
    RTX_QWEN: """
        As above, TP 2 over PCIe. The all-reduce of the built-in profile was measured on another server, whose GPUs
        reach each other directly. Full steps of 2,048 tokens, whose length the first tokens of this run give away,
        show what this server lacks: they take 86 ms longer than was predicted, with 16, 64 and 110 decodes alike.
        That is 0.67 ms for each of 128 all-reduces of 21 MB: 16 GB/s instead of 35.""",
    RTX_QWEN_LINK: f"""
        The same run with the link that LLMServingSim's own configuration of this run states (`link_bw`
        {OWNERS_LINK["link_bandwidth_gb_s"]:g} GB/s, `link_latency` {OWNERS_LINK["link_latency_us"]:g} us;
        `bench/examples/configs/Qwen3-32B.json`, commit 9692a58), as `latency.link_bandwidth_gb_s` and
        `link_latency_us`. It is not fitted here. With IOMMU and ACS off they later measured on that machine what
        the built-in profile has (`profiler/perf/RTXPRO6000/hardware.yaml`).""",
    QWEN_0230: """
        vLLM 0.23.0 on one H100 with stock settings (`max_num_seqs` 1,024 and `max_num_batched_tokens` 8,192 on that
        GPU), prompts of 986 tokens that share nothing, 128 tokens out, Poisson arrivals for 600 s; figures as the
        client saw them.""",
    LITE_0151: """
        vLLM 0.15.1 under inference-perf at low load, 20 minutes each: stages of 2.5 and 6 requests/s (8x22B: 1).
        Each of 45 users (8x22B: 23) repeats one prompt, so that all of it is cached from the second time on; prompts
        have 1.047 tokens for each of system prompt and question, Llama-3.1-8B's outputs 0.956 of the stated length.
        `max_num_seqs` 128, `max_model_len` 4,096, weights in BF16. TPOT is the runs' ITL, (E2E - TTFT) / (tokens
        out - 1).""",
    LITE_FITTED: """
        Each of these runs after `simrun fit` on the figures of one other run of its GPU and kind of model (dense, or
        with experts) and on nothing else.""",
    **dict.fromkeys(
        INFERENCEX,
        """
        Rows of InferenceX, each with the settings of the recipe of its date. Each client sends its next request when
        its last one ended, ten requests per client, all start at once; lengths uniform from 0.8 of the stated one.
        What no recipe says is vLLM's default on that GPU (`max_num_seqs` 1,024, `max_num_batched_tokens` 8,192). Rows
        with `dp` = TP and `moe_ep` = TP squared are TP with whole experts on each GPU: their recipes say nothing of
        data parallelism, and their times are those of the other label. Llama's rows do not record their engine:
        it is vLLM 0.10.2, the image in the workflow of their commit; on H100s without the settings of its
        `config.yaml`, which that version did not read (see Llama-3.1-70B FP8, H100), on B200s with 512 seats. CUDA
        graphs of decodes only and streaming 20 tokens at a time are not in the scenarios.""",
    ),
    SINGLE: """
        Runs that their authors published one at a time, under the settings that they state: an issue of
        ai-dynamo/aiconfigurator (1148: Qwen3-8B, vLLM 0.18), one of vllm-project/vllm (20469: AWQ, eager, 0.9.1), and
        two runs of casys-kaist/LLMServingSim (`bench/examples`, 0.19). No bar. The two ranks stood in the machine of
        Qwen3-32B at TP 2, on the same day, and are predicted with the same stated link too.""",
}

FITTED = """
    Fitted to measurements of whole engines are: the default of the host's time, per step and per request in it, on
    the training half of the Qwen3-32B points (`python -m benchmarks.accuracy --data DIR --fit-host` repeats it); client
    time and how late a few clients are, on the runs of vLLM 0.15.1 and 0.23.0; the time of launching a kernel outside
    CUDA graphs, on InferenceX's training half. Causes of errors were looked for there and in measured operators. Two
    things were chosen with other rows in sight: MiniMax-M2.5's count of launches and its router's padding (H100
    rows). H100 rows of Llama-3.1-70B showed that their engine's settings are not those of the recipe, H200 and B200
    rows of MiniMax-M2.5 that their experts are not spread as labelled, or not multiplied by the tables' kernel; which
    they are was then read in its scripts and in the engine.

    InferenceX's halves: of each model on each GPU, every second configuration (TP, expert parallelism, precision,
    engine settings of the recipe) in the order of their hashes is for training, so that all lengths and numbers of
    clients of a configuration are in one half. Results play no part.
    """

HONEST = (
    *FOUND,
    LEFT,
    LEFT_FIRST_TOKENS,
    """**Settings that were not recorded.** What is assumed about clients and engines is said at each set. A wrong
    assumption shows in TTFT first, as how many prompts share a step, in TPOT hardly. Qwen3-32B with 8 to 32
    clients is an example: TTFT at TP 2 is predicted up to 40 % too long with 1,024 tokens in, up to 25 % too
    short with 4,096, while TPOT of the same runs is within 3 %.""",
    """**Host time.** vLLM 0.12 waits for the host in every step: 0.47 ms and 23 us for each request, besides its
    sampler's sorting. The same makes vLLM 0.10.2's steps of Llama-3.1-70B on H100s right, which took no part in it.
    How long the host of another version or another machine takes is not known; asynchronous scheduling, the default
    since 0.14, hides it behind the GPU wherever steps are longer than that.""",
    """**Piecewise CUDA graphs.** The MiniMax-M2.5 server on H100s launched attention from the host. That is not
    modelled.""",
    """**Links.** All-reduce times come from one server per GPU. Two GPUs on PCIe that cannot reach each other
    directly are half as fast; a scenario says so with `latency.link_bandwidth_gb_s`, the default cannot know.""",
    """**KV cache.** At TP 2 and 128 clients of 4,096 tokens about 63 requests of Qwen3-32B ran at a time, predicted
    are 68: that server had some 7 % less room for KV than vLLM's defaults leave. It shows where requests queue:
    TP 2 with 64 and 128 clients. Llama-3.1-70B at TP 2 with 32 clients of 8,192 tokens queued more than is predicted.
    """,
    """**Unequal contexts.** Decode attention is charged by the batch's total context. Where few long requests run
    among short ones (the end of the Llama-3.1-8B run) the longest one holds the step up: 3 ms of 20 at 40 to 60
    requests.""",
    """**How well a measurement repeats.** Most sets give one run of each experiment. InferenceX has some settings of
    MiniMax-M2.5 twice, from two days: TPOT differs by 0.3 to 0.6 % in the median and TTFT by 2 to 4 % (H100, H200,
    B200), single rows by up to 61 % and 130 % (H100, 16 clients of 8,192 tokens).""",
)
"""What is off and why. Causes and sizes were found by hand; look again when the tables change."""
