"""With images in prompts too, the simulator decides as vLLM's scheduler does, on random workloads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from feature_traces import draw_image_pressure, with_images
from real_scheduler import RealScheduler, drive
from sim_scheduler import SimScheduler
from test_parity import POLICIES, first_difference
from traces import GROUPS, Case, Policy, Replay, draw_case, with_aborts

SEEDS = range(6)
"""Seeds of each kind, policy and depth: 13 x 2 x 2 x 6 traces; every other one has clients that leave."""
PRESSED = range(60)
"""Seeds of prompts full of images that are preempted, by depth."""


class Watched(RealScheduler):
    """vLLM's scheduler, with what it encodes in each step, and how often each path was taken."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.counts: Counter[str] = Counter()
        self.encoded: list[dict[str, list[int]]] = []
        self._watch_cuts()
        self._watch_cache()

    def _watch_cuts(self) -> None:
        original = self.scheduler._try_schedule_encoder_inputs

        def cut(request: Any, computed: int, num_new: int, *args: Any, **kwargs: Any) -> Any:
            result = original(request, computed, num_new, *args, **kwargs)
            if result[1] < num_new:
                self.counts["chunk cut before an image" if result[1] else "request kept waiting for an image"] += 1
            self.counts["same image twice in a chunk"] += len(result[4])
            return result

        self.scheduler._try_schedule_encoder_inputs = cut

    def _watch_cache(self) -> None:
        cache = self.scheduler.encoder_cache_manager
        find, evicted = cache.check_and_update_cache, cache.get_freed_mm_hashes

        def look(request: Any, place: int) -> bool:
            is_held = place in cache.get_cached_input_ids(request)
            is_there = bool(find(request, place))
            self.counts["image found in the cache"] += is_there and not is_held
            return is_there

        def freed() -> Any:
            found = evicted()
            self.counts["image evicted"] += len(found)
            return found

        cache.check_and_update_cache, cache.get_freed_mm_hashes = look, freed

    def schedule(self, step: int) -> tuple[tuple[tuple[str, int], ...], tuple[str, ...]]:
        """One ``schedule()``."""
        result = super().schedule(step)
        output = self._in_flight[-1][0]
        self.encoded.append(dict(output.scheduled_encoder_inputs))
        self.counts["image encoded"] += sum(map(len, output.scheduled_encoder_inputs.values()))
        return result


class SimWatched(SimScheduler):
    """The simulator's scheduler, with what it encodes in each step."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.encoded: list[dict[str, list[int]]] = []
        self.num_given_back = 0
        images = self.scheduler.images
        original = images.give_back

        def give_back(victim: Any) -> None:
            self.num_given_back += bool(images._encoded.get(victim))
            original(victim)

        images.give_back = give_back  # type: ignore[method-assign]

    def schedule(self, step: int) -> tuple[tuple[tuple[str, int], ...], tuple[str, ...]]:
        """One ``schedule()``."""
        result = super().schedule(step)
        encoded = self.scheduler.images._encoded
        self.encoded.append({request.request_id: list(places) for request, places in encoded.items()})
        return result


def compare(case: Case, counts: Counter[str]) -> tuple[Replay, str | None]:
    """Run a case on both; the first difference in words, or None."""
    real, simulated = Watched(case), SimWatched(case)
    theirs = drive(case, real)
    difference = first_difference(case, theirs, drive(case, simulated))
    if difference is None and real.encoded != simulated.encoded:
        pairs = zip(real.encoded, simulated.encoded, strict=True)
        place = next(index for index, (one, other) in enumerate(pairs) if one != other)
        difference = f"{case.name}: step {place} encodes {real.encoded[place]}, ours {simulated.encoded[place]}"
    cache = real.scheduler.encoder_cache_manager
    sizes = (cache.num_free_slots, cache.num_freeable_slots)
    ours = simulated.scheduler.images.cache
    if difference is None and sizes != (ours._num_unused, ours._num_reclaimable):
        difference = f"{case.name}: the cache has {sizes} left, ours {ours._num_unused, ours._num_reclaimable}"
    counts += real.counts
    counts["budget given back by a preempted request"] += simulated.num_given_back
    return theirs, difference


@pytest.fixture(scope="module")
def paths() -> Counter[str]:
    """How often each path was taken, over all traces."""
    return Counter()


@pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("policy", POLICIES)
def test_parity_with_images(
    policy: Policy, async_scheduling: bool, record_property: Callable[[str, object], None], paths: Counter[str]
) -> None:
    differences = []
    counts: Counter[str] = Counter()
    traces = steps = preemptions = 0
    cases = [with_images(draw_case(group, policy, async_scheduling, seed)) for group in GROUPS for seed in SEEDS]
    if policy == "priority":
        cases += [draw_image_pressure(async_scheduling, seed) for seed in PRESSED]
    for case in cases:
        real, difference = compare(with_aborts(case) if case.seed % 2 else case, counts)
        if difference is not None:
            differences.append(difference)
        traces += 1
        steps += len(real.records)
        preemptions += real.preemptions
    record_property("parity traces", traces)
    record_property("parity steps", steps)
    record_property("parity preemptions", preemptions)
    for name, count in counts.items():
        record_property(name, count)
    paths += counts
    assert not differences, f"{len(differences)} of {traces} traces differ\n" + "\n".join(differences[:3])


def test_every_path_was_taken(paths: Counter[str]) -> None:
    if sum(paths.values()) == 0:
        pytest.skip("counts what the tests above met")
    for path in (
        "image encoded",
        "image found in the cache",
        "image evicted",
        "chunk cut before an image",
        "request kept waiting for an image",
        "same image twice in a chunk",
        "budget given back by a preempted request",
    ):
        assert paths[path] > 20, (path, paths)
