"""LoRA adapters: how many of them a step may hold, and which are in the slots on the GPU.

Follows the rule of ``max_loras`` in ``v1/core/sched/scheduler.py`` and the slots of ``lora/worker_manager.py``
(``LRUCacheWorkerLoRAManager``; vLLM 0.32.0): an adapter that a step needs takes the slot of the one used longest ago.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from sim.engine.reference.batch import Batch, SchedulerSettings
from sim.engine.request import BASE_MODEL, Request


class Adapters:
    """The adapters of the step being formed, and the slots. Without ``max_loras`` nothing is asked of either."""

    def __init__(self, settings: SchedulerSettings) -> None:
        self.max_loras = settings.max_loras
        self._lora_bytes = settings.lora_bytes
        self._in_step: set[int] = set()
        self._slots = _RecentlyUsed(settings.max_loras)
        """Adapters on the GPU."""
        self._in_memory = _RecentlyUsed(settings.max_cpu_loras or settings.max_loras)
        """Adapters in host memory."""

    def begin_step(self, scheduled: Iterable[Request]) -> None:
        """The running requests of a step are chosen: their adapters are in it."""
        if self.max_loras:
            self._in_step = {request.lora for request in scheduled} - {BASE_MODEL}

    def admit(self, request: Request) -> bool:
        """Whether a waiting request may join the step: its adapter is there, or there is room for one more."""
        if not self.max_loras or request.lora == BASE_MODEL:
            return True
        return request.lora in self._in_step or len(self._in_step) < self.max_loras

    def take(self, request: Request) -> None:
        """A waiting request has joined the step."""
        if request.lora != BASE_MODEL:
            self._in_step.add(request.lora)

    def use(self, batch: Batch) -> None:
        """Note in the batch what its adapters add, and put them into slots."""
        if not self.max_loras:
            return
        shape = batch.shape
        needed: dict[int, None] = {}
        for request, num_tokens in batch.scheduled.items():
            if request.lora != BASE_MODEL:
                needed[request.lora] = None
                shape.num_lora_tokens += num_tokens
        shape.num_loras = len(needed)
        shape.num_lora_loads = self._slots.bring_in(needed)
        shape.lora_load_bytes = shape.num_lora_loads * self._lora_bytes
        shape.num_lora_reads = self._in_memory.bring_in(needed)


class _RecentlyUsed:
    """At most so many adapters, the one used longest ago first; those that a step needs never make room for others."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[int, None] = OrderedDict()

    def bring_in(self, needed: Iterable[int]) -> int:
        """Use ``needed``; returns how many of them were not there."""
        kept = self._kept
        missing = [lora for lora in needed if lora not in kept]
        for lora in needed:
            kept[lora] = None
            kept.move_to_end(lora)
        while len(kept) > self._most:
            kept.popitem(last=False)
        return len(missing)
