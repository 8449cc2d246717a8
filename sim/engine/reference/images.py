"""Images of prompts: what a step may put through the vision encoder, and what is kept of its output.

Follows ``_try_schedule_encoder_inputs`` and its neighbours in ``v1/core/sched/scheduler.py`` and
``v1/core/encoder_cache_manager.py`` (vLLM 0.32.0). A step encodes the images that its chunks reach, whole, up to a
budget; a chunk ends before an image that cannot be. Embeddings stay in a cache while a request still needs them, and
after that until others need the room: the ones let go of first make way first.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from sim.engine.request import Request, State

if TYPE_CHECKING:
    from sim.engine.reference.batch import Batch, SchedulerSettings
    from sim.latency.base import StepShape


class Images:
    """The encoder's budget in the step being formed, and its cache."""

    def __init__(self, settings: SchedulerSettings) -> None:
        self._budget = settings.encoder_budget_embeds
        self._only_whole = settings.disable_chunked_mm_input
        self.cache = EncoderCache(settings.encoder_cache_embeds)
        self._left = 0
        """Embeddings that may still be made in this step."""
        self._to_encode: list[int] = []
        """Images of the request that ``cut`` was asked about last, to be encoded if it is scheduled, ..."""
        self._repeated: list[int] = []
        """... and those of it that are the same as one of them."""
        self._left_then = 0
        """What is left of the budget if it is scheduled. What a request preempted for it gives back does not count, as
        in vLLM."""
        self._encoded: dict[Request, list[int]] = {}
        """Images that this step encodes, by request."""

    def begin_step(self) -> None:
        """A step is formed: the whole budget is there."""
        self._left = self._budget
        self._encoded.clear()

    def cut(self, request: Request, computed: int, num_new: int) -> int:
        """Tokens of a chunk of ``num_new`` tokens that its images allow. Images found in the cache are held at once."""
        to_encode, repeated = self._to_encode, self._repeated
        to_encode.clear()
        repeated.clear()
        chosen: set[int] = set()
        num_embeds, end = 0, computed + num_new
        for place, image in enumerate(request.images):
            if image.end <= computed:
                continue
            if image.start >= end:
                break
            if self._only_whole and computed < image.start and end < image.end:
                return image.start - computed
            if image.content in chosen:
                repeated.append(place)
                continue
            if self.cache.hold(request, place):
                continue
            if image.num_embeds > self._left - num_embeds or not self.cache.make_room(num_embeds + image.num_embeds):
                return max(image.start - computed, 0)
            if image.has_embeds_in(computed, end):
                num_embeds += image.num_embeds
                self._left_then = self._left - num_embeds
                chosen.add(image.content)
                to_encode.append(place)
        return num_new

    def take(self, request: Request) -> None:
        """The chunk that ``cut`` was asked about last is scheduled."""
        if not self._to_encode:
            return
        self._left = self._left_then
        for place in self._to_encode:
            self.cache.add(request, place)
        for place in self._repeated:
            self.cache.hold(request, place)
        self._encoded[request] = list(self._to_encode)

    def give_back(self, victim: Request) -> None:
        """A running request is preempted, and perhaps what this step was to encode of it is not."""
        for place in self._encoded.pop(victim, ()):
            self._left += victim.images[place].num_embeds
        self.cache.release_all(victim)

    def release_all(self, request: Request) -> None:
        """A request no longer needs any of its images: it has ended, or could not be admitted."""
        if request.images:
            self.cache.release_all(request)

    def use(self, shape: StepShape) -> None:
        """Note in the step's shape what it encodes."""
        for request, places in self._encoded.items():
            for place in places:
                num_embeds = request.images[place].num_embeds
                shape.num_images += 1
                shape.num_image_embeds += num_embeds
                shape.image_attention_pairs += num_embeds**2

    def has_run(self, batch: Batch) -> None:
        """A batch has been computed, and its tokens are not counted yet: images behind what is computed are let go
        of, and all those of requests that end now."""
        if not self.cache.held:
            return
        for request in batch.scheduled:
            if request not in self.cache.held or request.state is State.FINISHED:
                continue
            self.cache.release_until(request, request.num_computed_tokens - request.num_output_placeholders)
            if request.num_output_tokens + 1 >= request._stop_at_output_tokens and request in batch.sampled:
                self.cache.release_all(request)


class EncoderCache:
    """Embeddings of images by content, and which requests hold them. Sizes are in embeddings."""

    def __init__(self, size: int) -> None:
        self._num_unused = size
        self._num_reclaimable = size
        """Unused, or held by no request."""
        self._holders: dict[int, set[Request]] = {}
        self._sizes: dict[int, int] = {}
        self._unheld: OrderedDict[int, None] = OrderedDict()
        """Contents that no request holds, the one let go of first in front."""
        self.held: dict[Request, set[int]] = {}
        """Places of the images that a request holds. (A set as vLLM's: both let go in its order.)"""

    def hold(self, request: Request, place: int) -> bool:
        """Hold an image if it is there; returns whether it is."""
        content = request.images[place].content
        holders = self._holders.get(content)
        if holders is None:
            return False
        if not holders:
            del self._unheld[content]
            self._num_reclaimable -= self._sizes[content]
        holders.add(request)
        self.held.setdefault(request, set()).add(place)
        return True

    def make_room(self, num_embeds: int) -> bool:
        """Whether so many fit. What no request holds makes room for them."""
        if num_embeds > self._num_unused and num_embeds > self._num_reclaimable:
            return False
        while num_embeds > self._num_unused:
            content, _ = self._unheld.popitem(last=False)
            del self._holders[content]
            self._num_unused += self._sizes.pop(content)
        return True

    def add(self, request: Request, place: int) -> None:
        """An image is encoded in this step, and its request holds it."""
        image = request.images[place]
        self._holders[image.content] = {request}
        self._sizes[image.content] = image.num_embeds
        self.held.setdefault(request, set()).add(place)
        self._num_unused -= image.num_embeds
        self._num_reclaimable -= image.num_embeds

    def release_until(self, request: Request, computed: int) -> None:
        """Let go of the images of a request that end within its first ``computed`` tokens."""
        for place in list(self.held[request]):
            if request.images[place].end <= computed:
                self._release(request, place)

    def release_all(self, request: Request) -> None:
        """Let go of all images of a request."""
        for place in list(self.held.get(request, ())):
            self._release(request, place)

    def _release(self, request: Request, place: int) -> None:
        places, content = self.held[request], request.images[place].content
        places.discard(place)
        if not places:
            del self.held[request]
        if any(request.images[other].content == content for other in places):
            return  # the same image comes again further on
        holders = self._holders[content]
        holders.discard(request)
        if not holders:
            self._unheld[content] = None
            self._num_reclaimable += self._sizes[content]
