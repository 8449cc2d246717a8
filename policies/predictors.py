"""Expected output lengths. Fields named ``true_output_tokens``, ``seed`` and ``class_means`` are supplied by
the caller of ``build_predictor``; all others are the scenario's parameters.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from policies.base import Predictor, RequestView
from policies.checks import check_not_negative, check_positive, refuse


def hint_or_max_tokens(request: RequestView) -> int:
    """The client's own hint, else what it asks for at most."""
    hint = request.expected_output_tokens
    return max(1, request.max_tokens if hint is None else min(hint, request.max_tokens))


@dataclass(kw_only=True)
class Exact(Predictor):
    """The true length (an oracle). Where it is not known (live): the client's hint, else ``max_tokens``."""

    name: ClassVar[str] = "exact"
    summary: ClassVar[str] = "the true length (an oracle; live: the client's hint, else max_tokens)"

    true_output_tokens: Callable[[str], int] | None = field(default=None, repr=False)

    def predict(self, request: RequestView) -> int:
        """The true output length."""
        if self.true_output_tokens is None:
            return hint_or_max_tokens(request)
        return max(1, self.true_output_tokens(request.request_id))

    def on_finished(self, request: RequestView) -> None:
        """Nothing to learn."""


@dataclass(kw_only=True)
class MaxTokens(Predictor):
    """What the client asks for at most."""

    name: ClassVar[str] = "max_tokens"
    summary: ClassVar[str] = "what the client asks for at most"

    def predict(self, request: RequestView) -> int:
        """``max_tokens``."""
        return max(1, request.max_tokens)

    def on_finished(self, request: RequestView) -> None:
        """Nothing to learn."""


@dataclass(kw_only=True)
class ClassMean(Predictor):
    """The mean output of the request's class, never above its ``max_tokens``.

    Means come from ``means``, else from the workload; a class in neither takes the client's hint, else ``max_tokens``.
    """

    name: ClassVar[str] = "class_mean"
    summary: ClassVar[str] = "mean output length of the request's class"

    means: dict[str, float] = field(
        default_factory=dict, metadata={"help": "mean output tokens by class; a class not named has the workload's own"}
    )
    class_means: Mapping[str, float] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for class_name, mean in self.means.items():
            check_positive(self.name, f"means.{class_name}", mean)
        self._means = {
            class_name: max(1, round(mean)) for class_name, mean in {**(self.class_means or {}), **self.means}.items()
        }

    def predict(self, request: RequestView) -> int:
        """The class's mean, rounded."""
        mean = self._means.get(request.class_name)
        return hint_or_max_tokens(request) if mean is None else max(1, min(mean, request.max_tokens))

    def on_finished(self, request: RequestView) -> None:
        """Nothing to learn."""


@dataclass(kw_only=True)
class Noisy(Predictor):
    """The true length times a lognormal error of median 1, drawn per request id (the same in every run and policy).

    Not bounded by ``max_tokens``: where clients ask for exactly their output, a bound would undo every error upwards.
    """

    name: ClassVar[str] = "noisy"
    summary: ClassVar[str] = "the true length times a lognormal error"

    sigma: float = field(default=0.5, metadata={"help": "standard deviation of the error's logarithm; 0 = exact"})
    true_output_tokens: Callable[[str], int] | None = field(default=None, repr=False)
    seed: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        check_not_negative(self.name, "sigma", self.sigma)

    def predict(self, request: RequestView) -> int:
        """A draw around the true length, rounded, at least 1."""
        request_id = request.request_id
        known = self.true_output_tokens
        length = hint_or_max_tokens(request) if known is None else known(request_id)
        digest = hashlib.sha256(f"{self.seed}/noisy/{request_id}".encode()).digest()
        error = random.Random(int.from_bytes(digest[:16], "little")).gauss(0.0, self.sigma)
        return max(1, round(length * math.exp(error)))

    def on_finished(self, request: RequestView) -> None:
        """Nothing to learn."""


@dataclass(kw_only=True)
class Learned(Predictor):
    """The mean output of finished requests of the same class or tenant, never above ``max_tokens``.

    Until ``min_samples`` of them ended: the mean of all that ended, if those are enough; else the client's
    hint, else ``max_tokens``.
    """

    name: ClassVar[str] = "learned"
    summary: ClassVar[str] = "mean output length of finished requests, learned online"

    by: str = field(default="class", metadata={"help": "what shares a mean: class or tenant"})
    min_samples: int = field(default=5, metadata={"help": "ended requests before a mean is trusted"})
    _sums: dict[str, list[int]] = field(init=False, repr=False, default_factory=dict)
    """[output tokens, requests] by group."""
    _all: list[int] = field(init=False, repr=False, default_factory=lambda: [0, 0])

    def __post_init__(self) -> None:
        if self.by not in ("class", "tenant"):
            raise refuse(self.name, "by", self.by, "class or tenant")
        check_positive(self.name, "min_samples", self.min_samples)

    def predict(self, request: RequestView) -> int:
        """The learned mean, rounded half up."""
        for tokens, requests in (self._sums.get(self._group(request), (0, 0)), self._all):
            if requests >= self.min_samples:
                return max(1, min((2 * tokens + requests) // (2 * requests), request.max_tokens))
        return hint_or_max_tokens(request)

    def on_finished(self, request: RequestView) -> None:
        """Count a request; one that ended without any output (rejected, timed out in the queue) says nothing."""
        if request.num_output_tokens > 0:
            for sums in (self._sums.setdefault(self._group(request), [0, 0]), self._all):
                sums[0] += request.num_output_tokens
                sums[1] += 1

    def _group(self, request: RequestView) -> str:
        return request.class_name if self.by == "class" else request.tenant
