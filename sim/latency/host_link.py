"""The link between the GPUs of a replica and its host's memory, for KV that is offloaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim.latency.attention_kinds import LatentAttention

if TYPE_CHECKING:
    from sim.latency.memory_plan import PlannedEngine
    from sim.scenario.schema import EngineConfig, LatencyConfig

ASSUMED_BYTES_PER_S = 32e9
"""Each way, per GPU, where nothing is stated: what simulators assume for a host link (AISimulate), and below what PCIe
5.0 could carry (64 GB/s)."""
PAGE_BYTES = 4096
"""Of host memory, on an x86 server."""
PCIE_SHARE = 0.7
"""Share of the PCIe bandwidth that copies of KV blocks reach at most."""


@dataclass(frozen=True, slots=True)
class HostLink:
    """Each GPU has a link of its own, with both directions at once; a block of the replica moves in equal parts."""

    num_host_blocks: int
    """Blocks that host memory holds."""
    block_bytes_per_gpu: int
    gpus: int
    load_bytes_per_s: float
    store_bytes_per_s: float

    def ns(self, num_blocks: int, *, is_load: bool) -> int:
        """Nanoseconds that ``num_blocks`` take, the link to themselves."""
        rate = self.load_bytes_per_s if is_load else self.store_bytes_per_s
        return max(1, round(num_blocks * self.block_bytes_per_gpu / rate * 1e9))

    def bytes_of(self, num_blocks: int) -> int:
        """Bytes that ``num_blocks`` are, over all GPUs."""
        return num_blocks * self.block_bytes_per_gpu * self.gpus


def default_bytes_per_s(pcie_bandwidth: float) -> float:
    """Bytes/s each way where the scenario states nothing, for a GPU with this PCIe bandwidth (bytes/s)."""
    return min(ASSUMED_BYTES_PER_S, PCIE_SHARE * pcie_bandwidth)


def host_block_bytes(engine: EngineConfig, planned: PlannedEngine) -> int:
    """Bytes of one KV block in host memory, all GPUs together: whole pages (``CPUOffloadingSpec`` of
    ``vllm/v1/kv_offload/cpu/spec.py``, vLLM 0.32.0). A latent that every GPU holds is kept once."""
    is_latent = any(isinstance(mixer, LatentAttention) for mixer, _ in planned.model.mixers)
    copies = 1 if is_latent else engine.tensor_parallel_size
    num_bytes = planned.memory.kv_bytes_per_token * engine.block_size * copies
    return -(-num_bytes // PAGE_BYTES) * PAGE_BYTES


def plan_host_link(engine: EngineConfig, latency: LatencyConfig, planned: PlannedEngine) -> HostLink | None:
    """The host memory of each replica and the links to it; None = KV is not offloaded."""
    if engine.kv_offloading_size is None:
        return None
    assumed = default_bytes_per_s(planned.gpu.pcie_bandwidth)
    load_gb_s, store_gb_s = latency.kv_load_gb_s, latency.kv_store_gb_s
    return HostLink(
        num_host_blocks=int(engine.kv_offloading_size * 2**30) // host_block_bytes(engine, planned),
        block_bytes_per_gpu=planned.memory.kv_bytes_per_token * engine.block_size,
        gpus=engine.tensor_parallel_size,
        load_bytes_per_s=assumed if load_gb_s is None else load_gb_s * 1e9,
        store_bytes_per_s=assumed if store_gb_s is None else store_gb_s * 1e9,
    )
