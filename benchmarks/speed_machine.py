"""How fast this machine runs Python now: a fixed loop, against the same loop on the reference machine.

Machines of one kind differ by up to 1.7, and other work on a machine slows it further. ``benchmarks.speed`` times the
loop before and after each run, on the same core, and divides its bars by the slowness found.
"""

from __future__ import annotations

import heapq
import os
import platform
import time

# The standard library only, see ``speed``.

REFERENCE_LOOP_S = 0.28
"""CPU-seconds of ``fixed_loop`` on ``REFERENCE_MACHINE`` with little else running."""
REFERENCE_MACHINE = "2 cores of an AMD EPYC (family 26, model 2), Linux, CPython 3.11.7"
ROUNDS = 600_000
_IN_FLIGHT = 128
_KEYS = 1 << 15


class _Task:
    """An item of the loop's queue."""

    __slots__ = ("left", "seen")

    def __init__(self, left: int) -> None:
        self.left = left
        self.seen = 0


def fixed_loop(rounds: int = ROUNDS) -> int:
    """Run a queue of tasks in pure Python; returns a number that depends on all of it.

    Each round takes the earliest of 128 entries from a heap, counts in the task's slots, looks a key up among 32,768 in
    a dictionary, appends to a list, and puts the task back later: what an event loop over requests does.
    """
    tasks = [_Task(1 + number % 7) for number in range(_IN_FLIGHT)]
    queue = [(number, number) for number in range(_IN_FLIGHT)]
    latest: dict[int, int] = {}
    ended: list[int] = []
    total = 0
    for turn in range(rounds):
        now, number = heapq.heappop(queue)
        task = tasks[number]
        task.left -= 1
        task.seen += 1
        key = (turn * 40_503) & (_KEYS - 1)
        total += now - latest.get(key, 0)
        latest[key] = now
        if task.left == 0:
            task.left = 1 + (now * 31 + number) % 7
            ended.append(task.seen)
            if len(ended) == _IN_FLIGHT:
                total += sum(ended)
                ended.clear()
        heapq.heappush(queue, (now + 1 + (turn & 15), number))
    return total


def slowness() -> float:
    """Time of the loop now over its time on the reference machine: 1.5 = half as much time again."""
    began = time.process_time()
    fixed_loop()
    return (time.process_time() - began) / REFERENCE_LOOP_S


def machine() -> str:
    """This machine in one line."""
    found = {"model name": platform.processor() or platform.machine(), "cpu family": "?", "model": "?"}
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() in found:
                    found[key.strip()] = value.strip()
                if not line.strip():
                    break
    except OSError:
        pass
    name = f"{found['model name']} (family {found['cpu family']}, model {found['model']})"
    return f"{os.cpu_count()} cores, {name}, {platform.system()}, Python {platform.python_version()}"
