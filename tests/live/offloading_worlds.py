"""Both schedulers with KV offloading, and their worker's side: transfers that take a number of steps, drawn alike."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from feature_traces import transfer_steps
from real_scheduler import RealScheduler
from sim_scheduler import SimScheduler, scheduler_settings
from traces import Case

from policies.fcfs import Fcfs
from policies.priority import Priority
from sim.engine.reference.batch import Batch
from sim.engine.request import Request
from sim.engine.variants.offloading import Transfer
from sim.engine.variants.offloading_scheduler import OffloadingScheduler


class Worker:
    """Which transfers are known to be done in which step."""

    def __init__(self, case: Case) -> None:
        self._settings = case.settings
        self._due: dict[int, int] = {}
        """Number of a transfer -> the step in which it is done."""

    def run(self, step: int, loads: list[int], stores: list[int], flushed: set[int]) -> list[int]:
        """A step begins transfers and waits for those ``flushed``; what is done with it, in order."""
        for numbers, is_load in ((loads, True), (stores, False)):
            for number in numbers:
                self._due[number] = step + transfer_steps(self._settings, number, is_load=is_load)
        done = sorted(number for number, due in self._due.items() if due <= step or number in flushed)
        for number in done:
            del self._due[number]
        return done


@dataclass(slots=True)
class Begun:
    """What a step transfers: requests and blocks in order, and the numbers of the transfers that it waits for."""

    loads: list[tuple[str, int]]
    stores: list[tuple[str, int]]
    flushed: list[int]
    done: list[int]


class RealOffloading(RealScheduler):
    """vLLM's scheduler with its OffloadingConnector."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self._worker = Worker(case)
        self._step = -1
        self._done: dict[int, list[int]] = {}
        """id of a scheduler output -> transfers done with it."""
        self._load_of: dict[int, str] = {}
        self.counts: Counter[str] = Counter()
        """How often what is to be compared happened."""
        self.begun: list[Begun] = []
        self._freed: list[str] = []
        self._order_ends()

    def _order_ends(self) -> None:
        """Ended requests go to the connector in the order of their ends: vLLM holds them as a set of strings, whose
        order is another one in every process."""
        scheduler = self.scheduler
        connector = scheduler.connector
        free_request, build = scheduler._free_request, connector.build_connector_meta

        def free(request: Any, *args: Any, **kwargs: Any) -> Any:
            self._freed.append(request.request_id)
            return free_request(request, *args, **kwargs)

        def build_meta(output: Any) -> Any:
            ended, output.finished_req_ids = output.finished_req_ids, list(self._freed)
            self._freed.clear()
            meta = build(output)
            output.finished_req_ids = ended
            return meta

        scheduler._free_request = free
        connector.build_connector_meta = build_meta

    @property
    def is_idle(self) -> bool:
        return super().is_idle and not self.scheduler.has_requests()

    def schedule(self, step: int) -> tuple[tuple[tuple[str, int], ...], tuple[str, ...]]:
        decided = super().schedule(step)
        output = self._in_flight[-1][0]
        meta = output.kv_connector_metadata
        for number, job in meta.load_jobs.items():
            self._load_of[number] = job.req_id
            self.counts["blocks loaded"] += len(job.dst_spec.block_ids)
        for job in meta.store_jobs.values():
            self.counts["blocks stored"] += len(job.src_spec.block_ids)
        flushed = meta.jobs_to_flush or set()
        done = self._worker.run(step, list(meta.load_jobs), list(meta.store_jobs), flushed)
        self._done[id(output)] = done
        self.begun.append(
            Begun(
                [(job.req_id, len(job.dst_spec.block_ids)) for job in meta.load_jobs.values()],
                [(job.req_id, len(job.src_spec.block_ids)) for job in meta.store_jobs.values()],
                sorted(flushed),
                done,
            )
        )
        self.counts["loads"] += len(meta.load_jobs)
        self.counts["stores waited for"] += len(flushed)
        self.counts["frees put off"] += len(self.scheduler.deferred_frees)
        return decided

    def abort(self, request_id: str) -> tuple[str, ...]:
        request = self.scheduler.requests.get(request_id)
        status = None if request is None or request.is_finished() else request.status.name
        self.counts[f"aborts in {status}"] += 1
        return super().abort(request_id)

    def worker_output(self, output: Any) -> Any:
        from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import OffloadingWorkerMetadata
        from vllm.v1.outputs import KVConnectorOutput

        done = self._done.pop(id(output))
        received = {self._load_of.pop(number): None for number in done if number in self._load_of}
        return KVConnectorOutput(
            finished_recving=received or None,  # type: ignore[arg-type]
            kv_connector_worker_meta=OffloadingWorkerMetadata(completed_jobs=dict.fromkeys(done, 1)),
        )


class SimOffloading(SimScheduler):
    """The simulator's scheduler with KV offloading."""

    scheduler: OffloadingScheduler

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        policy = Fcfs() if case.settings.policy == "fcfs" else Priority()
        self.scheduler = OffloadingScheduler(scheduler_settings(case.settings), policy)
        self._worker = Worker(case)
        self.begun: list[Begun] = []
        self._transfers: dict[int, Transfer] = {}
        self._done: dict[int, list[Transfer]] = {}

    @property
    def is_idle(self) -> bool:
        return super().is_idle and not self.scheduler.has_work()

    def schedule(self, step: int) -> tuple[tuple[tuple[str, int], ...], tuple[str, ...]]:
        decided = super().schedule(step)
        plan = self.scheduler.transfers
        self._transfers.update({each.number: each for each in (*plan.loads, *plan.stores)})
        loads, stores = ([each.number for each in kind] for kind in (plan.loads, plan.stores))
        flushed = {each.number for each in plan.flushed}
        done = self._worker.run(step, loads, stores, flushed)
        by_request = [
            [(each.request.request_id, len(each.keys)) for each in kind] for kind in (plan.loads, plan.stores)
        ]
        self.begun.append(Begun(by_request[0], by_request[1], sorted(flushed), done))
        self._done[id(self._in_flight[-1])] = [self._transfers.pop(number) for number in done]
        return decided

    def update(self, batch: Batch) -> list[Request]:
        ended = super().update(batch)
        self.scheduler.complete(self._done.pop(id(batch)))
        return ended


def by_request(transfers: list[Transfer]) -> list[tuple[str, int]]:
    """The requests of transfers, and how many blocks each moves."""
    return [(each.request.request_id, len(each.keys)) for each in transfers]
