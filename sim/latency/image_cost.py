"""What a model's vision tower adds to a step that encodes images: its layers over their patches, before the decoder's.

An image of 256 embeddings of Gemma 3 is 4,096 patches, which see each other in all 27 layers. The tower runs on the
GPUs of the decoder's first stage, split among them as the decoder is, operator by operator without CUDA graphs
(``v1/worker/gpu/mm/encoder_runner.py``, vLLM 0.32.0). Attention is that of the profile's curves (``encoder_attention``)
where it has some, matrices likewise; what no curve holds is a formula of arithmetic and traffic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sim.latency.added_cost import AddedCost
from sim.latency.base import StepShape
from sim.latency.gpus import GpuSpec
from sim.latency.model_spec import ModelSpec, VisionSpec
from sim.latency.operators import Efficiency
from sim.latency.parts import UNMEASURED_ERROR, one_part

if TYPE_CHECKING:
    from sim.latency.profile.predict import Predictor
    from sim.scenario.schema import EngineConfig

IntColumn = npt.NDArray[np.int64]

ELEMENT_BYTES = 2
"""Towers are kept and computed in 16 bits, in quantised checkpoints too."""
LAYER_OPERATORS = 12
"""Launches of one layer: two norms, two sums, four matrices, positions, attention, activation, a copy."""
ELEMENTWISE_PASSES = 12
"""Times that a layer's short kernels read or write the hidden state of every patch."""


class ImageCost(AddedCost):
    """The step cost of a model, with what the step's images add. Nothing is added to a step without images."""

    columns = ("num_images", "num_image_embeds", "image_attention_pairs")

    def __init__(
        self, target: Any, model: ModelSpec, vision: VisionSpec, gpu: GpuSpec, engine: EngineConfig, time_scale: float
    ) -> None:
        """``target``: the cost of the decoder, a profile's or a roofline."""
        super().__init__(target)
        self.vision = vision
        self._hidden, self._gpu, self._tp = model.hidden_size, gpu, engine.tensor_parallel_size
        self._ns = time_scale * 1e9
        self._costs = Efficiency()
        self._predictor: Predictor | None = getattr(getattr(target, "operators", None), "predictor", None)
        self._known: dict[tuple[int, int, int], int] = {}
        """Nanoseconds by counts of a shape."""
        self.has_attention = self._has("encoder_attention", (vision.heads // self._tp, vision.head_size, 1))

    def _has(self, operator: str, key: tuple[str | int, ...]) -> bool:
        return self._predictor is not None and self._predictor.has(operator, key)

    def image_ns(self, shape: StepShape) -> int:
        """What the tower takes for the images of this step."""
        if not shape.num_images:
            return 0
        counts = (shape.num_images, shape.num_image_embeds, shape.image_attention_pairs)
        found = self._known.get(counts)
        if found is None:
            found = self._known[counts] = round(sum(self.parts_s(*counts).values()) * self._ns)
        return found

    def parts_s(self, num_images: int, num_embeds: int, pairs: int) -> dict[str, float]:
        """Seconds of the tower by part. Images of several sizes count as so many of one: as many embeddings, and as
        many pairs that see each other."""
        vision, costs, gpu = self.vision, self._costs, self._gpu
        patches = num_embeds * vision.patches_per_embed
        each = pairs / num_embeds * vision.patches_per_embed
        matrices = vision.layers * sum(self._matrix_s(patches, n, k) for n, k in self._layer_matrices())
        matrices += self._matrix_s(patches, vision.width, vision.patch_values)
        matrices += self._matrix_s(num_embeds, self._hidden, vision.width)
        traffic = patches * (ELEMENTWISE_PASSES * vision.width + 2 * vision.mlp_width / self._tp) * ELEMENT_BYTES
        parts = {
            "matrices": matrices,
            "attention": vision.layers * self._attention_s(patches / each, each),
            "elementwise": vision.layers * traffic / (gpu.memory_bandwidth * costs.elementwise),
        }
        if self._tp > 1:
            parts["all_reduce"] = 2 * vision.layers * self._all_reduce_s(patches * vision.width * ELEMENT_BYTES)
        launches = vision.layers * LAYER_OPERATORS * costs.eager_operator_s
        parts["launches"] = max(launches - sum(parts.values()), 0.0)
        return parts

    def _layer_matrices(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of one layer on one GPU."""
        vision, tp = self.vision, self._tp
        width, mlp = vision.width, vision.mlp_width // tp
        ups = [(mlp, width)] * (vision.mlp_matrices - 1)
        return [(3 * width // tp, width), (width, width // tp), *ups, (width, mlp)]

    def _matrix_s(self, rows: float, outputs: int, inputs: int) -> float:
        """One matrix over so many rows."""
        key = ("bfloat16", outputs, inputs)
        if self._predictor is not None and self._has("gemm", key):
            return self._predictor.time_ns("gemm", key, rows) * 1e-9
        flops = 2.0 * rows * outputs * inputs
        moved = (rows * (outputs + inputs) + outputs * inputs) * ELEMENT_BYTES
        gpu, costs = self._gpu, self._costs
        return max(flops / (gpu.fp16_flops * costs.gemm), moved / (gpu.memory_bandwidth * costs.memory))

    def _attention_s(self, images: float, patches: float) -> float:
        """Attention of one layer over images of so many patches."""
        vision, heads = self.vision, max(self.vision.heads // self._tp, 1)
        if self.has_attention and self._predictor is not None:
            batch = max(round(images), 1)
            key = (heads, vision.head_size, batch)
            return self._predictor.time_ns("encoder_attention", key, patches) * 1e-9 * images / batch
        flops = 4.0 * images * heads * vision.head_size * patches**2
        return self._costs.kernel_s + flops / (self._gpu.fp16_flops * self._costs.prefill_attention)

    def _all_reduce_s(self, num_bytes: float) -> float:
        gpu, costs, others = self._gpu, self._costs, self._tp - 1
        has_nvlink = gpu.nvlink_bandwidth is not None
        start = costs.nvlink_latency_s if has_nvlink else costs.pcie_latency_s
        return start + 2.0 * others / self._tp * num_bytes / (gpu.link_bandwidth * costs.link)

    # -- a step cost ------------------------------------------------------------------------------

    def added_ns(self, shape: StepShape) -> dict[str, int]:
        """The tower's time."""
        return {"images": self.image_ns(shape)}

    def describe(self) -> dict[str, object]:
        """The target's description, and what an image costs."""
        measured = "attention and matrices from curves, the rest from " if self.has_attention else ""
        what = f"the vision tower: {measured}arithmetic, traffic and launches"
        embeds = self.vision.tokens_per_image or 1024
        alone = self.parts_s(1, embeds, embeds**2)
        return self.described(
            {"images": one_part("estimate", UNMEASURED_ERROR, what)},
            images={
                "basis": what,
                "embeddings": embeds,
                "image_ms": sum(alone.values()) * self._ns / 1e6,
                "parts_ms": {name: seconds * self._ns / 1e6 for name, seconds in alone.items()},
            },
        )
