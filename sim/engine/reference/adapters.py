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
        self._slots: OrderedDict[int, None] = OrderedDict()
        """Adapters on the GPU, the one used longest ago first."""

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
        shape, slots = batch.shape, self._slots
        needed: dict[int, None] = {}
        for request, num_tokens in batch.scheduled.items():
            if request.lora != BASE_MODEL:
                needed[request.lora] = None
                shape.num_lora_tokens += num_tokens
        shape.num_loras = len(needed)
        for lora in needed:
            if lora in slots:
                slots.move_to_end(lora)
        for lora in needed:
            if lora in slots:
                continue
            if len(slots) == self.max_loras:
                slots.popitem(last=False)
            slots[lora] = None
            shape.lora_load_bytes += self._lora_bytes
