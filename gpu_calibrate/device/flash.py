"""FlashAttention as it is installed: an engine's own build where there is one, else the one inside torch.

Prefill is charged with what engines run. vLLM brings ``vllm.vllm_flash_attn`` (FlashAttention-3 on Hopper); the package
``flash_attn`` has version 2 for other users; torch carries version 2, without paging. The profile names the one timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpu_calibrate.device.buffers import Buffers

Call = Callable[[], Any]
PAGE_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Batch:
    """One call's tensors. Paged, ``key`` and ``value`` are (pages, page tokens, heads, size); else (tokens, ...)."""

    query: Any
    key: Any
    value: Any
    query_starts: Any
    key_starts: Any
    context_lens: Any
    block_table: Any
    max_query: int
    max_context: int


@dataclass(frozen=True, slots=True)
class Flash:
    """A FlashAttention: ``run`` enqueues causal attention of a ``Batch``, queries at the end of their contexts."""

    name: str
    paged: bool
    run: Callable[[Batch], Any]

    def call(
        self,
        buffers: Buffers,
        queries: list[int],
        contexts: list[int],
        num_heads: int,
        num_kv_heads: int,
        head_size: int,
        dtype: str,
    ) -> Call:
        """A launch over fresh buffers: requests of ``queries`` new tokens after ``contexts`` - ``queries`` others."""
        torch = buffers.torch

        def starts(lengths: list[int]) -> Any:
            ends = [0]
            for length in lengths:
                ends.append(ends[-1] + length)
            return torch.tensor(ends, dtype=torch.int32, device=buffers.device)

        pages = [-(-length // PAGE_TOKENS) for length in contexts]
        block_table = None
        if self.paged:
            rows = sum(pages)
            kv_shape: tuple[int, ...] = (rows, PAGE_TOKENS, num_kv_heads, head_size)
            block_table = torch.zeros(len(contexts), max(pages), dtype=torch.int32)
            order = torch.randperm(rows).to(torch.int32)
            first = 0
            for row, count in enumerate(pages):
                block_table[row, :count] = order[first : first + count]
                first += count
            block_table = block_table.to(buffers.device)
        else:
            kv_shape = (sum(contexts), num_kv_heads, head_size)
        batch = Batch(
            query=buffers.take(dtype, sum(queries), num_heads, head_size),
            key=buffers.take(dtype, *kv_shape),
            value=buffers.take(dtype, *kv_shape),
            query_starts=starts(queries),
            key_starts=starts(contexts),
            context_lens=torch.tensor(contexts, dtype=torch.int32, device=buffers.device),
            block_table=block_table,
            max_query=max(queries),
            max_context=max(contexts),
        )
        run = self.run
        return lambda: run(batch)


def vllm_flash(capability: tuple[int, int]) -> Flash | None:
    """vLLM's build: version 3 on compute capability 9, version 2 elsewhere."""
    try:
        from vllm.vllm_flash_attn import (  # type: ignore[import-not-found, unused-ignore]
            flash_attn_varlen_func,
        )
    except Exception:  # an import of compiled code can fail in any way
        return None
    version = 3 if capability[0] == 9 else 2

    def run(batch: Batch) -> Any:
        return flash_attn_varlen_func(
            q=batch.query,
            k=batch.key,
            v=batch.value,
            max_seqlen_q=batch.max_query,
            cu_seqlens_q=batch.query_starts,
            max_seqlen_k=batch.max_context,
            seqused_k=batch.context_lens,
            causal=True,
            block_table=batch.block_table,
            fa_version=version,
        )

    return Flash(f"vllm_flash_attn FlashAttention-{version}, paged", True, run)


def package_flash() -> Flash | None:
    """The package ``flash_attn``; its pages must be multiples of 256 tokens, so only contiguous KV is timed."""
    try:
        import flash_attn  # type: ignore[import-not-found, unused-ignore]
        from flash_attn import flash_attn_varlen_func
    except Exception:
        return None

    def run(batch: Batch) -> Any:
        return flash_attn_varlen_func(
            batch.query,
            batch.key,
            batch.value,
            cu_seqlens_q=batch.query_starts,
            cu_seqlens_k=batch.key_starts,
            max_seqlen_q=batch.max_query,
            max_seqlen_k=batch.max_context,
            causal=True,
        )

    return Flash(f"flash_attn {flash_attn.__version__} FlashAttention-2, contiguous KV", False, run)


def torch_flash(torch: Any) -> Flash | None:
    """torch's own FlashAttention-2, called below scaled_dot_product_attention: only there chunks after prior KV, causal
    from the last key, and grouped KV heads are one kernel."""
    operator = getattr(torch.ops.aten, "_flash_attention_forward", None)
    if operator is None:
        return None

    def run(batch: Batch) -> Any:
        return operator(
            batch.query,
            batch.key,
            batch.value,
            batch.query_starts,
            batch.key_starts,
            batch.max_query,
            batch.max_context,
            0.0,
            True,
            False,
        )

    return Flash(f"torch {torch.__version__} FlashAttention-2, contiguous KV", False, run)


def find_flash(torch: Any, capability: tuple[int, int]) -> Flash | None:
    """The FlashAttention that stands for what engines run here, the most like an engine's first."""
    return vllm_flash(capability) or package_flash() or torch_flash(torch)
