"""LoRA adapters beside a model's matrices: their memory, and what they add to a step.

An adapter of rank r has for each matrix of n outputs and k inputs one of r x k and one of n x r, as
``vllm/lora/layers`` keeps them (vLLM 0.32.0): the small matrices of query, key and value lie side by side, so do those
of gate and up; the inputs' side is whole on each GPU of a column-parallel matrix, the outputs' side on each of a
row-parallel one; embedding and LM head have theirs. All slots are as large as ``max_lora_rank`` asks for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sim.latency.added_cost import AddedCost
from sim.latency.base import StepShape
from sim.latency.gpus import GpuSpec
from sim.latency.model_spec import ModelSpec
from sim.latency.operators import Efficiency
from sim.latency.parts import UNMEASURED_ERROR, one_part

if TYPE_CHECKING:
    from sim.scenario.schema import EngineConfig

SLICES: Mapping[str, int] = {"qkv": 3, "up": 2}
"""Small matrices that lie side by side; one elsewhere."""
ELEMENT_BYTES, SUM_BYTES = 2, 4
"""Of an adapter's weights, and of the sums between its two matrices (``lora/punica_wrapper/punica_gpu.py``)."""
LARGEST_VOCABULARY = 258048
"""vLLM refuses adapters of an LM head with more tokens (``lora/layers/logits_processor.py``)."""
READ_BANDWIDTH = 2e9
READ_S = 0.02
"""Of an adapter's file in the page cache: bytes a second, and what opening and taking it apart takes. Engineer's
figures, not measured."""


@dataclass(frozen=True, slots=True)
class LoraMatrix:
    """The adapter of one matrix, as it is in ``layers`` layers, on one GPU."""

    slices: int
    outputs: int
    inputs: int
    layers: int
    experts: int = 0
    """Experts that have such a matrix each; 0 = a matrix that every token passes."""
    per_token: int = 1
    """Of them, those that a token passes."""

    def bytes_of(self, rank: int) -> int:
        """Of both small matrices: 3 x 16 x 4096 and 6144 x 16 elements for the qkv of Llama 3.1 8B at rank 16."""
        return rank * (self.slices * self.inputs + self.outputs) * ELEMENT_BYTES

    def slot_bytes(self, rank: int) -> int:
        """Of all layers and experts."""
        return self.layers * (self.experts or 1) * self.bytes_of(rank)

    def token_bytes(self, rank: int) -> int:
        """Read and written for one token: its input, the sums between twice, its output twice; of experts the small
        matrices too, since tokens meet others there."""
        moved = (self.inputs + 2 * self.outputs) * ELEMENT_BYTES + 2 * self.slices * rank * SUM_BYTES
        if self.experts:
            moved += self.bytes_of(rank)
        return self.layers * self.per_token * moved


def outer_matrices(model: ModelSpec, tp: int) -> list[LoraMatrix]:
    """Of embedding and LM head, which adapters rarely have, but slots are kept for."""
    hidden, vocabulary = model.hidden_size, model.vocab_size // tp
    return [LoraMatrix(1, hidden, vocabulary, 1), LoraMatrix(1, vocabulary, hidden, 1)]


def layer_matrices(model: ModelSpec, tp: int) -> list[LoraMatrix]:
    """What an adapter has in the layers, on one of ``tp`` GPUs."""
    hidden, found = model.hidden_size, []
    for kind, count in model.kinds:
        for block in (kind.mixer, kind.mlp):
            if block is not None:
                found += [
                    LoraMatrix(SLICES.get(matrix.part, 1), matrix.outputs, matrix.inputs, count)
                    for matrix in block.matrices(hidden, tp)
                ]
        moe = kind.experts
        if moe is not None:
            width, inner, slices = moe.width // tp, moe.latent_size or hidden, moe.matrices_each - 1
            found.append(LoraMatrix(slices, slices * width, inner, count, moe.num, moe.per_token))
            found.append(LoraMatrix(1, inner, width, count, moe.num, moe.per_token))
    return found


def lora_bytes(model: ModelSpec, rank: int, tp: int) -> int:
    """One adapter's slot on one GPU."""
    return sum(each.slot_bytes(rank) for each in (*outer_matrices(model, tp), *layer_matrices(model, tp)))


class LoraCost(AddedCost):
    """The step cost of a model, with what the step's adapters add: two kernels for each matrix, and moving adapters.

    A kernel takes its start and its traffic: the small matrices of each adapter in the step, and inputs and outputs of
    the tokens that have one. Nothing is added to a step without adapters: vLLM captures CUDA graphs for both.
    """

    columns = ("num_loras", "num_lora_tokens", "num_lora_loads", "num_lora_reads", "lora_load_bytes")

    def __init__(self, target: Any, model: ModelSpec, gpu: GpuSpec, engine: EngineConfig, time_scale: float) -> None:
        """``target``: the cost of the model alone, a profile's or a roofline."""
        super().__init__(target)
        self.rank = engine.max_lora_rank
        self._tp = engine.tensor_parallel_size
        costs = Efficiency()
        bandwidth = gpu.memory_bandwidth * costs.memory
        matrices = layer_matrices(model, self._tp)
        start_s = costs.eager_operator_s if engine.enforce_eager else costs.kernel_s
        ns = time_scale * 1e9
        self._start_ns = 2 * sum(each.layers for each in matrices) * start_s * ns
        self._adapter_ns = sum(each.slot_bytes(self.rank) for each in matrices if not each.experts) / bandwidth * ns
        self._token_ns = sum(each.token_bytes(self.rank) for each in matrices) / bandwidth * ns
        self._moved_ns = ns / (gpu.pcie_bandwidth * costs.link * self._tp)
        copies = 2 * sum(each.layers * each.slices for each in matrices)
        self._copies_ns = copies * costs.eager_operator_s * ns
        self._read_ns = (READ_S + lora_bytes(model, self.rank, self._tp) * self._tp / READ_BANDWIDTH) * 1e9

    def lora_ns(self, shape: StepShape) -> int:
        """What the kernels of adapters take in this step."""
        if not shape.num_loras:
            return 0
        return round(self._start_ns + shape.num_loras * self._adapter_ns + shape.num_lora_tokens * self._token_ns)

    def load_ns(self, shape: StepShape) -> int:
        """What the step waits for adapters that are read from their files and copied into slots."""
        copied = shape.num_lora_loads * self._copies_ns + shape.lora_load_bytes * self._moved_ns
        return round(copied + shape.num_lora_reads * self._read_ns)

    def added_ns(self, shape: StepShape) -> dict[str, int]:
        """Kernels of adapters, and moving them."""
        return {"lora": self.lora_ns(shape), "lora_load": self.load_ns(shape)}

    def describe(self) -> dict[str, object]:
        """The target's description, and what adapters cost."""
        evidence = {
            "lora": one_part("estimate", UNMEASURED_ERROR, "LoRA adapters: starts and traffic of their kernels"),
            "lora_load": one_part("estimate", UNMEASURED_ERROR, "LoRA adapters: reading and copying them"),
        }
        return self.described(
            evidence,
            lora={
                "max_lora_rank": self.rank,
                "step_ms": self._start_ns / 1e6,
                "adapter_ms": self._adapter_ns / 1e6,
                "token_us": self._token_ns / 1e3,
                "read_ms": self._read_ns / 1e6,
            },
        )
