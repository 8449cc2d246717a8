"""Causes of errors that were found, each with its evidence: for what is off, and why."""

from __future__ import annotations

SHORT_STEPS = (
    "**Sampling from the most probable tokens.** Steps of vLLM 0.15.1 were 9 to 10 % short on A100s and, for an "
    "8B on H100s, 0.5 to 0.9 ms, more with larger batches; those of a 70B were right. Host time cannot be it: a "
    "step of 25 ms on an A100 hides it better than one of 12 ms on an H100. inference-perf sends no "
    "`temperature`, so that requests get the model's own `top_p` and `top_k`, for which vLLM 0.11.1 to 0.16 sorts "
    "all logits of a step with PyTorch: 0.40 ms for 64 rows of 32,768 logits, 1.06 ms for 64 of 131,072 (vLLM's "
    "pull request 40376). CodeLlama and Mixtral have no `top_p`, Llama 2 has a vocabulary of 32,000. Sorting goes "
    "by cores and clock. `latency.sampling: plain` is for clients that ask for temperature 0."
)

FLASH_ATTENTION_2 = (
    "**Decodes beside a chunk, FlashAttention-2.** A100, L40S and RTX GPUs run it. With a prefill chunk in the "
    "batch it multiplies a tile of queries for each single one, so that decodes cost arithmetic there, and "
    "bandwidth alone. The ratio of both was that of the one GPU where it is measured (RTX PRO 6000); it goes by "
    "arithmetic over bandwidth now: 1.8 times on an A100, 0.7 times on an L40S. Of the runs of 0.15.1 that made "
    "Qwen3-14B's steps 4 % longer on the A100 and 10 % shorter on the L40S, and TTFT on A100s 8 and 10 % short, "
    "where it had been 17 and 15 %."
)

CLIENT_TIME = (
    "**Client time.** TTFT of all eight runs of dense models below saturation (vLLM 0.15.1 and 0.23.0, two "
    "clients, three GPUs) was short by 1.2 to 2.3 ms, and by 4.5 ms at the highest rate, whatever the model, with "
    "4 ms between client and engine. Prompts had about a thousand tokens; with 8,192 InferenceX's training half "
    "lacks 2 to 8 us a token more on H100 and H200 (more on B200, for other reasons too). So tokenising is charged, "
    "with 2 us a token: `latency.client_token_us`."
)

CHUNKS_AFTER_CACHED_TOKENS = (
    "**Short chunks after many cached tokens.** One token after 100,000 cached ones cost twice a decode, and more "
    "than 32 tokens did: what a small prompt takes beyond its bound, most of it the kernel's start, was applied "
    "to the reading of all that KV. A chunk takes what the prompt with as many query-key pairs takes, and at "
    "least what a decode takes to read its context."
)

EAGER = (
    "**Eager engines.** Layers that norm queries and keys launch three operators more, layers of quantised "
    "matrices four: 17 a layer of Qwen3-14B AWQ, not 10. Its TPOT on an A100 under vLLM 0.9.1 (vllm#20469) was 30 "
    "% short and is 4 % long; TTFT stays 32 % short, for no table has AWQ's kernels at 2,048 tokens."
)

FEW_EXPERTS = (
    "**Few experts, BF16.** Mixtral's steps were 12 to 18 % too long, so that runs saturated which did not. "
    "The kernel's "
    "table is of tokens drawn by a power law, which puts 2.2 to 3.5 times the mean on the busiest of 8 experts; the "
    "rows of the same table with even tokens, and SGLang's run of the same kernel, give 0.493 ms for 32 tokens where "
    "the draw gives 0.524, and a rule that a larger batch takes no less lifted all batches below 64 to 0.571. "
    "Models of "
    "at most 16 experts take the even rows, with as many experts touched as independent tokens touch."
)

COLLECTIVES = (
    "**All-reduce on 8 B200.** 256 and 512 KiB take 26 us in four collections (vLLM 0.19 and 0.24, SGLang 0.5.9 and "
    "0.5.10): these are no outliers. From 0.17 on vLLM takes another kernel there, in one with the norm (8 and 11 "
    "us), up to a size by GPU and TP; its curve is in the profile now. 0.10.2 has no symmetric memory by default, "
    "so that NCCL takes what is beyond 8 MiB (16 MiB over 8 H200s: 122 us for 87). Falling stretches of measured "
    "curves of experts and attention are joined at their median."
)

MINIMAX_KERNELS = (
    "**MiniMax-M2.5.** Its FP8 has a scale for each block of 128 by 128, its router is in 32 bits, and its norm of "
    "queries and keys spans all heads and so all GPUs (one more all-reduce). Prompts larger than the largest "
    "CUDA graph "
    "wait for the launches of their kernels, 32 us each on InferenceX's hosts."
)

EXPERT_KERNELS = (
    "**Which experts ran, and which kernel.** MiniMax-M2.5's TPOT was 14.6 % off on H200 and 7.6 % on B200. Two of "
    "InferenceX's scripts ask for expert parallelism whatever the label says (`-ge 1` where the others have `-gt 1`): "
    "eight H200s without it would not have started (192 columns of an expert are no whole blocks of 128). vLLM 0.16 "
    "puts FlashInfer's CUTLASS experts first on Hopper; 0.17 and later take Triton's where experts are split "
    "(`fused_moe/oracle/fp8.py`, pull request 34260). That kernel is TensorRT-LLM's, whose table has it for split "
    "experts: 60 us a layer more at 4 tokens, 1.1 ms at 8,192; for whole experts it agrees with vLLM's own table. And "
    "the B200 server of 0.17 was told to run Triton's. With the three, TPOT was 4.1 and 3.6 % off."
)

MANY_EXPERTS = (
    "**Many experts, few tokens.** Steps with 4 to 8 requests were 2 to 6 % too long on all three GPUs. The tables' "
    "draws touch more experts than tokens can that choose by themselves: 8 tokens that choose 8 of 256 touch 57 at "
    "most, the draw 64. Up to two rows an expert, drawn times are no more than those of as many experts as even choice "
    "touches, on the busiest GPU where they are whole. TPOT on H100 came from 5.8 to 3.3 %. Left: 16 requests are 5 to "
    "10 % too long still, prompts on B200 12 to 16 % too short."
)

FP8_MATRICES = (
    "**FP8 matrices with one scale.** Three things of the tables, found with Llama-3.1-70B's training rows. Times "
    "of vLLM's FP8 layer are with making 8 bits of its inputs: 4.8 us where the matrix is next to nothing, 2.6 us "
    "in 16 bits, and aiconfigurator takes both kernels off again where inputs come in 8 bits. A compiled engine "
    "makes them in the norm or the activation before, so that three of a layer's four matrices are 3 us shorter "
    "(0.7 ms of a step of 80 layers); attention with an 8-bit cache makes its queries 8 bits, which was not "
    "charged. On H200s 17 to 47 rows take 10 to 18 % longer than 48, in three of four shapes: a tile of 64 that is "
    "mostly empty (sglang's pull request 25532 found the same). That was taken for noise; steps of 32 clients were "
    "up to 15 % short. And from 8,192 rows on later versions have a larger tile, which the line from 4,096 rows had "
    "in part for 7,400; 0.10.2's binary has no such kernel at all."
)

FLASHINFER = (
    "**Launches on B200.** vLLM takes attention, fused all-reduces and FP8 matrices from FlashInfer there, whose "
    "Python takes about as long again as a launch. InferenceX's rows of Llama-3.1-70B in FP4, which are not scored, "
    "show it alone: at 4 clients TTFT is 72 to 99 ms with 1, 2, 4 or 8 GPUs. Eight such calls a layer make a prompt "
    "of 1,024 tokens hold decodes up for 61 ms, where 61 to 67 were measured at TP 2. What is left of TTFT on "
    "B200s, 15 to 70 ms a request whatever the prompt, is not in the steps, for TPOT is right with it; ten times "
    "that is 0.1 to 0.7 s for each of the first requests, which all clients send at once, as kernels that are "
    "fetched and loaded when they are first needed would take (the recipe patches FlashInfer's loader for its "
    "races). Their client is kimbochen/bench_serving at no "
    "stated commit, which sends one request ahead; since 21 January 2026 (InferenceX's d053ae24) it is two for each "
    "client."
)

LEFT = (
    "**Not found, dense models.** Decode steps on H100s are 1 to 2 % long (Qwen3-14B, CodeLlama-34B, Llama-2-70B). "
    "Llama-3.1-70B on H200s, with FP8 KV, is short by 10 % where 32 and 64 requests have long contexts: "
    "FlashAttention 3 of 0.10.2 may be slower there than the table's of 0.24; H100s, with 16-bit KV, are not. "
    "Qwen3-14B on one L40S near saturation is 6 % long: some 75 requests share 45 prompts there, and KV that "
    "several of them read may come from the 96 MB of L2 the second time, which is not modelled. Collections of "
    "16-bit matrices agree within 1 % (A100, L40S) to 6 % (H100) where weights are read, and differ by 7 (A100), 9 "
    "(H100) and 25 % (L40S) from 1,024 rows on, vLLM's the fastest; which one a server under load is like is not "
    "known. Qwen3-8B on an H200 with 9,000 tokens in (aiconfigurator#1148): a step of 8,192 tokens takes 227 ms "
    "here, and ITL cannot exceed that; measured were 237 ms at 32 clients and 309 at 64."
)

LEFT_FIRST_TOKENS = (
    "**Not found, first tokens of gpt-oss-120b.** With 1,024 tokens in, the training half's rows of 2026 lack 5 to "
    "8 ms (H100), 8 to 11 (B200) and 12 (H200) at 4 clients, and 20 to 54 at 64, but for one whose TPOT is 36 % "
    "off. It is not this model's alone: at 4 and 8 clients Llama-3.1-70B lacks 12 (B200), 16 (H200) and 2 ms (H100) "
    "in the median, MiniMax-M2.5 12 (B200) and 15 (H200), where the validation half's at TP 4 on H100 and H200 is "
    "12 to 16 ms too long; TTFT of gpt-oss is the shortest, so that it weighs most. Not the cause are tokenising "
    "(prompts made as the client makes them, with the vocabulary o200k_base in Hugging Face's tokenizers, take 2.0 "
    "to 2.4 us a token; 2 are charged) and longer prompts than stated (they come out at 922 and 7,373 tokens where "
    "so many are asked for). Streams are a part at most: a bare server and client, with vLLM's messages and no "
    "engine, take 7, 8, 12 and 20 ms for a first token beside 4, 32, 64 and 128 streams of 100 tokens/s (one run "
    "each, two shared cores of another machine). That is 0.1 ms a stream, which is not charged; and MiniMax-M2.5 on "
    "B200s, which sends a message for every 20th token, lacks 12 to 15 ms at 4 clients and 21 to 24 at 64 too."
)

FOUND = (
    *(SHORT_STEPS, EXPERT_KERNELS, FEW_EXPERTS, MANY_EXPERTS, FP8_MATRICES, FLASHINFER, COLLECTIVES),
    *(MINIMAX_KERNELS, FLASH_ATTENTION_2, CLIENT_TIME, CHUNKS_AFTER_CACHED_TOKENS, EAGER),
)
"""Paragraphs of the page, in the order of what they weigh."""
