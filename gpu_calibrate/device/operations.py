"""Points as calls: for each operator a list of functions that enqueue one launch each, over rotating buffers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gpu_calibrate.device.base import PointError
from gpu_calibrate.device.buffers import Buffers, num_sets
from gpu_calibrate.device.flash import Flash
from gpu_calibrate.plan.points import ON_GPU, Point, context_lengths, work_of

Call = Callable[[], Any]

DECODE_KERNEL = "paged_attention_split_kv"
"""The best of this project's ladder: charged where no engine's own kernel is installed."""
SMALL_SETS = 8
"""Buffer sets of element-wise kernels: what they read has just been written by another kernel, and lies in the L2."""
KV_DTYPES = {"bfloat16": "auto", "float16": "auto", "fp8": "fp8"}


@dataclass(frozen=True, slots=True)
class Operation:
    """One call per buffer set; a graph of several launches goes round them."""

    calls: list[Call]
    kernel: str
    kernel_hash: str | None = None
    in_graph: bool = True
    """Copies to and from the host are timed without a graph."""
    keep: list[Any] = field(default_factory=list)
    """Buffers that no other part holds."""


@dataclass(slots=True)
class Operations:
    """Builds operations with ``torch`` on ``device``; ``own`` prepares this project's kernels, ``flash`` attention."""

    torch: Any
    device: str
    buffers: Buffers
    l2_bytes: int
    flash: Flash | None
    own: Callable[..., Operation] | None = None
    """``own_kernels.operation``, where CuPy is."""
    cupy: Any = None
    """The module, for GEMM by the other way to cuBLAS."""

    def build(self, point: Point) -> Operation:
        """Raises PointError where this machine cannot time the point."""
        builders: dict[str, Callable[[Point], Operation]] = {
            "gemm": self._gemm,
            "decode_attention": self._decode,
            "decode_attention_contiguous": self._contiguous,
            "prefill_attention": self._prefill,
            "elementwise": self._elementwise,
            "sampling": self._sampling,
            "host_copy": self._host_copy,
        }
        builder = builders.get(point.operator)
        if builder is None:
            raise PointError(f"{point.operator} is not timed on one GPU")
        return builder(point)

    def _gemm(self, point: Point) -> Operation:
        torch, fields, m = self.torch, point.fields, point.at
        dtype, n, k = str(fields["dtype"]), int(fields["n"]), int(fields["k"])
        sets = num_sets(work_of(point).bytes, self.l2_bytes)
        if point.variant:
            return self._launched_gemm(point.variant, (m, n, k), dtype, sets)
        calls: list[Call] = []
        if dtype == "fp8":
            one = torch.ones((), dtype=torch.float32, device=self.device)
            for _ in range(sets):
                activations, weights = self.buffers.take("fp8", m, k), self.buffers.take("fp8", n, k)
                calls.append(
                    partial(
                        torch._scaled_mm,
                        activations,
                        weights.t(),
                        scale_a=one,
                        scale_b=one,
                        out_dtype=torch.bfloat16,
                        use_fast_accum=True,
                    )
                )
            return Operation(
                calls, f"torch {torch.__version__} _scaled_mm, scales per tensor, activations quantised before"
            )
        for _ in range(sets):
            activations, weights = self.buffers.take(dtype, m, k), self.buffers.take(dtype, n, k)
            calls.append(partial(torch.mm, activations, weights.t(), out=self.buffers.scratch(m, n, dtype=dtype)))
        return Operation(calls, f"torch {torch.__version__} mm (cuBLAS)")

    def _launched_gemm(self, library: str, shape: tuple[int, int, int], dtype: str, sets: int) -> Operation:
        """Through torch or CuPy, over the same buffers, without a graph: CuPy refuses to have cuBLAS captured."""
        torch, cupy, (m, n, k) = self.torch, self.cupy, shape
        if library == "cupy" and cupy is None:
            raise PointError("CuPy is not installed")
        calls: list[Call] = []
        for _ in range(sets):
            activations, weights = self.buffers.take(dtype, m, k), self.buffers.take(dtype, n, k).t()
            out = self.buffers.scratch(m, n, dtype=dtype)
            if library == "cupy":
                calls.append(partial(cupy.dot, *map(cupy.from_dlpack, (activations, weights, out))))
            else:
                calls.append(partial(torch.mm, activations, weights, out=out))
        version = torch.__version__ if library == "torch" else cupy.__version__
        return Operation(calls, f"{library} {version} (cuBLAS), launched one by one", in_graph=False)

    def _decode(self, point: Point) -> Operation:
        if point.variant or self.flash is None or not self.flash.paged or point.fields["kv_dtype"] == "fp8":
            return self._own_decode(point, point.variant or DECODE_KERNEL)
        return self._flash([1] * int(point.fields["batch"]), context_lengths(point), point)

    def _own_decode(self, point: Point, kernel: str) -> Operation:
        fields = point.fields
        sets = num_sets(work_of(point).bytes, self.l2_bytes)
        return self._own(
            kernel,
            sets,
            num_q_heads=int(fields["num_heads"]),
            num_kv_heads=int(fields["num_kv_heads"]),
            head_size=int(fields["head_size"]),
            context_lens=context_lengths(point),
            dtype=str(fields["dtype"]),
            kv_dtype=KV_DTYPES[str(fields["kv_dtype"])],
            seed=point.number,
        )

    def _contiguous(self, point: Point) -> Operation:
        return self._own_decode(point, "contiguous_attention")

    def _own(self, kernel: str, sets: int, **shape: Any) -> Operation:
        if self.own is None:
            raise PointError(f"{kernel} needs CuPy: pip install 'simrun-llm[gpu-cu12]' or '[gpu-cu13]'")
        return self.own(kernel, sets, **shape)

    def _prefill(self, point: Point) -> Operation:
        batch, prior = int(point.fields["batch"]), int(point.fields["prior_tokens"])
        return self._flash([point.at] * batch, [prior + point.at] * batch, point)

    def _flash(self, queries: list[int], contexts: list[int], point: Point) -> Operation:
        if self.flash is None:
            raise PointError("this torch has no FlashAttention for this GPU")
        fields = point.fields
        if fields["kv_dtype"] == "fp8":
            # FlashAttention-2 takes none; -3 does with FP8 queries, which could not be tried here.
            raise PointError(f"{self.flash.name} is not called with FP8 KV")
        sets = num_sets(work_of(point).bytes, self.l2_bytes)
        calls = [
            self.flash.call(
                self.buffers,
                queries,
                contexts,
                int(fields["num_heads"]),
                int(fields["num_kv_heads"]),
                int(fields["head_size"]),
                str(fields["dtype"]),
            )
            for _ in range(sets)
        ]
        return Operation(calls, self.flash.name)

    def _elementwise(self, point: Point) -> Operation:
        name, width, tokens = str(point.fields["name"]), int(point.fields["width"]), point.at
        shape: dict[str, Any] = {"num_tokens": tokens, "dtype": "bfloat16"}
        if name == "rms_norm":
            shape |= {"hidden_size": width, "residual": True}
        elif name == "silu_and_mul":
            shape |= {"intermediate_size": width}
        else:
            head_size = next((size for size in (128, 64) if width % (2 * size) == 0), 0)
            if not head_size:
                raise PointError(f"{name} of {width} elements per token is no whole number of heads")
            shape["head_size"] = head_size
            if name == "rotary":
                # Heads are alike to this kernel: all but one are called query heads.
                shape |= {"num_q_heads": width // head_size - 1, "num_kv_heads": 1}
            else:
                shape |= {"num_kv_heads": width // head_size // 2}
        return self._own(name, min(SMALL_SETS, num_sets(work_of(point).bytes, self.l2_bytes)), **shape)

    def _sampling(self, point: Point) -> Operation:
        torch, rows, vocab_size = self.torch, point.at, int(point.fields["vocab_size"])
        logits = torch.empty(rows, vocab_size, dtype=torch.float32, device=self.device).normal_()
        temperature = torch.full((rows, 1), 0.7, dtype=torch.float32, device=self.device)

        def sample() -> Any:
            probabilities = torch.softmax(logits / temperature, dim=-1, dtype=torch.float32)
            noise = torch.empty_like(probabilities).exponential_()
            return probabilities.div_(noise).argmax(dim=-1)

        return Operation([sample], "torch: temperature, softmax, exponential noise, argmax")

    def _host_copy(self, point: Point) -> Operation:
        torch = self.torch
        size = point.at // 2 if point.fields["direction"] == ON_GPU else point.at
        on_gpu = torch.empty(size, dtype=torch.uint8, device=self.device).random_(0, 255)
        if point.fields["direction"] == ON_GPU:
            other = torch.empty(size, dtype=torch.uint8, device=self.device)
            return Operation([partial(other.copy_, on_gpu)], "device-to-device copy, bytes read plus written")
        on_host = torch.empty(point.at, dtype=torch.uint8, pin_memory=self.device != "cpu")
        source, target = (on_gpu, on_host) if point.fields["direction"] == "to_host" else (on_host, on_gpu)
        return Operation(
            [partial(target.copy_, source, non_blocking=True)], "cudaMemcpyAsync, pinned memory", in_graph=False
        )
