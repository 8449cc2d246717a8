"""Every kernel under AddressSanitizer and UndefinedBehaviorSanitizer, for test_kernels_sanitized.py.

    python sanitized_cases.py LIBRARY HEAD_SIZE BLOCK_SIZE DTYPE KV_DTYPE [KERNEL PREFIX]

The process must have been started with the sanitizers' runtime preloaded. Ends with 0 if all results are right, with 3
if one is wrong; a sanitizer ends it at the first bad access.
"""

from __future__ import annotations

import sys
from pathlib import Path

from kernels_cpu import Specialisation, error_of, load

from gpu_calibrate.launches.plan_types import Plan
from gpu_calibrate.launches.plans import DECODE_LADDER, plan


def cases(specialisation: Specialisation) -> list[Plan]:
    shape = {"num_q_heads": 4, "num_kv_heads": 1, **specialisation.shape()}
    lengths = [1, 15, 33, 130]
    found = [plan(op, context_lens=lengths, **shape) for op in (*DECODE_LADDER, "contiguous_attention")]
    for merge in ("last_block", "kernel"):
        found.append(plan("paged_attention_split_kv", context_lens=[150, 0], tokens_per_split=48, merge=merge, **shape))
    found.append(plan("paged_prefill", query_lens=[1, 40], context_lens=[17, 43], **shape))
    kv_shape = {name: value for name, value in shape.items() if name != "num_q_heads"}
    found.append(plan("reshape_and_cache", num_tokens=19, k_scale=0.5, **kv_shape))
    tokens = {"num_tokens": 2, "dtype": specialisation.dtype}
    for residual in (True, False):
        found.append(plan("rms_norm", hidden_size=520, residual=residual, **tokens))
    rotary = {"head_size": specialisation.head_size, "rotary_dim": specialisation.rotary_dim, "max_position": 50}
    found.append(plan("rotary", num_q_heads=4, num_kv_heads=1, **rotary, **tokens))
    found.append(plan("silu_and_mul", intermediate_size=1_000, **tokens))
    return found


def main(
    library: str, head_size: str, block_size: str, dtype: str, kv_dtype: str, only: str | None = None, prefix: str = ""
) -> int:
    specialisation = Specialisation(int(head_size), int(block_size), dtype, kv_dtype)
    kernels = load(Path(library))
    count = 0
    for planned in cases(specialisation):
        if only is not None and planned.op != only:
            continue
        for order in (0, 1, 2):
            found = error_of(kernels, planned, order, prefix)
            if not found <= 1.0:
                print(f"{planned.op}, order {order}: {found} times the tolerated error")
                return 3
        count += 1
    print(f"{count} cases are right")
    return 0 if count else 4


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
