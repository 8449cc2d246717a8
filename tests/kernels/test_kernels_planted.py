"""Would the tests notice? Known mistakes are put into the kernels' sources, and each must give a wrong result.

The sources themselves hold no trace of this: the text is changed before it is compiled. A change whose text is no
longer found is an error, so that none of these tests can go blind.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernels_cpu import (
    COMMON,
    NAN_BYTE,
    Mistake,
    Specialisation,
    compile_mistakes,
    error_of,
    fresh_arrays,
    launch,
    load,
    run_sanitized,
)
from test_kernels_sanitized import FAR, FAR_BLOCKS, far_array

from gpu_calibrate.launches.float64 import expected, worst
from gpu_calibrate.launches.plan_types import Plan
from gpu_calibrate.launches.plans import plan

NAIVE, UNCOALESCED = "paged_attention_naive", "paged_attention_uncoalesced"
SHARED, VECTORISED = "paged_attention_shared", "paged_attention_vectorised"
GQA, SPLIT, PREFILL = "paged_attention_gqa", "paged_attention_split_kv", "paged_prefill"


def mistake(name: str, file: str, *changes: tuple[str, str]) -> Mistake:
    return Mistake(name, file, changes)


NUMERIC = [
    # The number of blocks (tiles) of a sequence rounded down instead of up.
    mistake(
        "rounded_down_gqa", GQA, ("for (; token < end; token += step)", "for (; token + 16 <= end; token += step)")
    ),
    mistake("rounded_down_shared", SHARED, ("start < tokens;", "start + SCORE_TILE <= tokens;")),
    mistake("rounded_down_prefill", PREFILL, ("token < seen;", "token + STAGE <= seen;")),
    mistake("splits_rounded_down", SPLIT, (" + (tokens % tokens_per_split > 0)", "")),
    # Tokens past the end: read into the products, or only counted.
    mistake("past_end_keys", GQA, ("return t <= last;", "return t <= last + 1;")),
    mistake("past_end_values", GQA, ("min(2 * j + t % 2 + t / 2 * 8, last)", "2 * j + t % 2 + t / 2 * 8")),
    # The table's row stride.
    mistake(
        "own_block_count",
        NAIVE,
        ("seq, max_blocks, block_stride", "seq, (tokens + BLOCK_SIZE - 1) / BLOCK_SIZE, block_stride"),
    ),
    # The sum of the weights, 1/sqrt(d), and the maximum.
    mistake("undivided_naive", NAIVE, ("weighted / sum * v_scale", "weighted * v_scale")),
    mistake("undivided_shared", SHARED, ("sums[i] / softmax.sum", "sums[i]")),
    mistake("undivided_split", SPLIT, ("sums[q][k] / total", "sums[q][k]")),
    mistake("unscaled", SPLIT, ("rsqrtf(static_cast<float>(HEAD_SIZE)) * ", "")),
    mistake("undivided_gqa", GQA, ("merged.value / merged.sum", "merged.value")),
    mistake("merge_forgets_maximum", GQA, ("exp2_fast(part.largest - merged.largest)", "1.0f")),
    mistake(
        "splits_forget_maximum",
        SPLIT,
        ("exp2_fast(load_from_others(partials.largest + first + mine) - largest)", "1.0f"),
    ),
    mistake("tile_forgets_to_shrink", GQA, ("results.out[column][m][i] *= shrink[i % 2];", ";")),
    mistake("softmax_forgets_to_shrink", UNCOALESCED, ("sum = sum * shrink + ", "sum = sum + ")),
    # Which head, which query, which token.
    mistake("wrong_kv_head", VECTORISED, ("head / (num_q_heads / num_kv_heads)", "head % num_kv_heads")),
    mistake("sees_the_future", PREFILL, ("<= prior + min(first + row", "<= prior + 1 + min(first + row")),
    mistake("forgets_prior", PREFILL, ("<= prior + min(first + row", "<= min(first + row")),
    mistake("counter_left", SPLIT, ("if (*ticket == used - 1) *arrived = 0;", "")),
    # Asynchronous copies that nothing waits for.
    mistake("no_wait", PREFILL, ("copy_async_wait<1>();", "")),
]

BARRIERS = [
    *(Mistake(f"barrier_reduce_{n}", UNCOALESCED, (), n) for n in range(4)),
    *(Mistake(f"barrier_shared_{n}", SHARED, (), n) for n in range(4, 8)),
    *(Mistake(f"barrier_vectorised_{n}", VECTORISED, (), n) for n in range(4, 8)),
    # Not the one between two blocks' counting: on the CPU blocks run one after another.
    Mistake("barrier_merge", SPLIT, (), 4),
    Mistake("barrier_ticket", SPLIT, (), 6),
    *(Mistake(f"barrier_prefill_{n}", PREFILL, (), n) for n in range(4, 6)),
]


def shape_of(op: str) -> Plan:
    heads = {"num_q_heads": 4, "num_kv_heads": 2, **COMMON.shape()}
    if op == PREFILL:
        return plan(op, query_lens=[70, 20], context_lens=[110, 93], **heads)
    if op == SPLIT:
        return plan(op, context_lens=[17, 300, 150], tokens_per_split=64, **heads)
    return plan(op, context_lens=[17, 300, 150], **heads)


def is_noticed(library: ctypes.CDLL, planted: Mistake, planned: Plan) -> bool:
    for order in (0, 1, 2, 3, 4, 5):
        arrays = fresh_arrays(planned)
        want = expected(planned, arrays)
        # Valid, so that a mistake gives a wrong number and not a crash of the test.
        arrays["block_tables"][arrays["block_tables"] < 0] = 0
        try:
            for _ in range(2):
                launch(library, planned, arrays, order, planted.name + "_")
                if not worst(planned, want, arrays) <= 1.0:
                    return True
                arrays["out"].view(np.uint8)[...] = NAN_BYTE
        except RuntimeError:
            return True
    return False


@pytest.fixture(scope="module")
def planted_library(kernel_folder: Path) -> Iterator[Any]:
    """The library that holds a mistake; several compilers at a time."""
    mistakes = [*NUMERIC, *BARRIERS]
    parts = [mistakes[n::4] for n in range(4)]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        pending = [pool.submit(compile_mistakes, kernel_folder, COMMON.defines(), part) for part in parts]
        yield lambda name: load(pending[next(n for n, part in enumerate(parts) if name in part)].result())


@pytest.mark.parametrize("planted", [*NUMERIC, *BARRIERS], ids=lambda planted: planted.name)
def test_mistake_is_noticed(planted_library: Any, planted: Mistake) -> None:
    assert is_noticed(planted_library(planted), planted, shape_of(planted.file))


def test_the_same_runs_are_right_without_a_mistake(kernel_folder: Path) -> None:
    """Else the tests above would notice anything."""
    files = sorted({each.file for each in [*NUMERIC, *BARRIERS]})
    untouched = [Mistake(f"untouched_{file}", file, ()) for file in files]
    library = load(compile_mistakes(kernel_folder, COMMON.defines(), untouched))
    assert [each.file for each in untouched if is_noticed(library, each, shape_of(each.file))] == []


IN_32_BITS = [
    mistake("int_offset", GQA, ("return block * block_stride +", "return static_cast<int>(block * block_stride) +")),
    mistake(
        "int_slot", "reshape_and_cache", ("slot / BLOCK_SIZE * block_stride", "int(slot / BLOCK_SIZE * block_stride)")
    ),
]


@pytest.mark.parametrize("planted", IN_32_BITS, ids=lambda planted: planted.name)
def test_32_bit_offsets_are_noticed(kernel_folder: Path, planted: Mistake) -> None:
    """Element 2^32 + n of the cache becomes element n."""
    library = load(compile_mistakes(kernel_folder, FAR.defines(), IN_32_BITS))
    if planted.file == GQA:
        planned = plan(GQA, num_q_heads=2, num_kv_heads=1, context_lens=[40], **FAR.shape())
    else:
        planned = plan(planted.file, num_tokens=9, num_kv_heads=1, **FAR.shape())
    arrays = fresh_arrays(planned)
    want = expected(planned, arrays)
    if planted.file == GQA:
        arrays["block_tables"] += FAR_BLOCKS * (arrays["block_tables"] >= 0).astype(np.int32)
    else:
        arrays["slot_mapping"] += FAR_BLOCKS * 32
    for name in ("k_cache", "v_cache"):
        arrays[name] = far_array(arrays[name])
    launch(library, planned, arrays, 0, planted.name + "_")
    near = {**arrays, "k_cache": arrays["k_cache"][FAR_BLOCKS:], "v_cache": arrays["v_cache"][FAR_BLOCKS:]}
    assert worst(planned, want, near) > 1.0


MEMORY = [
    # Scores of the whole sequence in an array made for a fixed number of them.
    mistake(
        "fixed_score_array",
        SHARED,
        ("scores[t] = part", "scores[start + t] = part"),
        ("scores[thread] : MINUS", "scores[start + thread] : MINUS"),
        ("scores[thread] = weight", "scores[start + thread] = weight"),
        ("scores[t] * to_float", "scores[start + t] * to_float"),
    ),
    # A whole tile is read where the sequence has fewer tokens: blocks that are not its own.
    mistake("whole_tiles", UNCOALESCED, ("min(SCORE_TILE, tokens - start)", "SCORE_TILE")),
]
SMALL = Specialisation(64, 16, "bfloat16", "auto")


@pytest.fixture(scope="module")
def sanitized_mistakes(kernel_folder: Path) -> Path:
    return compile_mistakes(kernel_folder, SMALL.defines(), MEMORY, sanitize=True)


@pytest.mark.parametrize("planted", MEMORY, ids=lambda planted: planted.name)
def test_bad_access_is_noticed_by_the_sanitizer(sanitized_mistakes: Path, planted: Mistake) -> None:
    done = run_sanitized(sanitized_mistakes, SMALL, planted.file, planted.name + "_")
    assert done.returncode not in (0, 3)
    assert "AddressSanitizer" in done.stderr, done.stdout + done.stderr[-2000:]


def test_a_mistake_whose_text_is_gone_is_an_error(kernel_folder: Path) -> None:
    with pytest.raises(Exception, match="no longer contains 'nowhere'"):
        compile_mistakes(kernel_folder, COMMON.defines(), [mistake("gone", GQA, ("nowhere", ""))])


def test_error_of_a_right_kernel_is_not_zero_by_accident(kernel_folder: Path) -> None:
    """Tolerances are near what rounding does: errors use a good part of them, so small mistakes do not hide beneath."""
    library = load(compile_mistakes(kernel_folder, COMMON.defines(), [Mistake("plain", SHARED, ())]))
    assert 0.3 < error_of(library, shape_of(SHARED), prefix="plain_") <= 1.0
