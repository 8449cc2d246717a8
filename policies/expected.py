"""What the length-aware policies share: one prediction per request, and the work left derived from it."""

from __future__ import annotations

from dataclasses import dataclass, field

from policies.base import EngineLimits, Policy, Predictor, RequestView
from policies.checks import check_positive


def uncomputed_tokens(request: RequestView) -> int:
    """Tokens known but not computed yet: 1 for a decoding request, the rest of the prompt before that."""
    left = request.num_prompt_tokens + request.num_output_tokens - request.num_computed_tokens
    return left if left > 1 else 1


def prompt_left(request: RequestView) -> int:
    """Prompt tokens still to be computed for the first time; 0 once the request has an output token.

    A preempted request computes its tokens again. That is left out here, or being preempted would
    make a decoding request look longer than before; lost work on a prompt that was not finished counts.
    """
    return 0 if request.num_output_tokens > 0 else max(0, request.num_prompt_tokens - request.num_computed_tokens)


@dataclass(kw_only=True)
class PredictingPolicy(Policy):
    """A policy that ranks by expected length.

    Work is counted in prompt tokens: ``prompt tokens + output_weight * output tokens``. The
    prediction is asked for once per request and kept until it ends, so that a rank moves only with
    the request's own progress even while the predictor learns.
    """

    uses_predictor = True

    predictor: Predictor
    output_weight: int | None = field(
        default=1,
        metadata={
            "help": "prompt tokens that one output token counts as: 1 = plain tokens; null = as many as take the engine"
            " as long, by its step costs (a live engine, which does not know them, takes 3)"
        },
    )
    _weight: int = field(init=False, repr=False, default=1)
    _expected: dict[str, int] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.output_weight is not None:
            check_positive(self.name, "output_weight", self.output_weight)
            self._weight = self.output_weight

    def bind(self, limits: EngineLimits) -> None:
        if self.output_weight is None:
            self._weight = limits.prompt_tokens_per_output_token

    def expected_output(self, request: RequestView) -> int:
        """Expected total output tokens of ``request``, at least 1."""
        expected = self._expected.get(request.request_id)
        if expected is None:
            expected = self._expected[request.request_id] = max(1, self.predictor.predict(request))
        return expected

    def total_work(self, request: RequestView) -> int:
        """Whole expected work of ``request``, done or not."""
        return request.num_prompt_tokens + self._weight * self.expected_output(request)

    def remaining_work(self, request: RequestView) -> int:
        """Expected work left, at least one output token. It never grows but when prefill work is lost."""
        # Asked of every running request whenever one waits: few calls.
        expected = self._expected.get(request.request_id)
        if expected is None:
            expected = self.expected_output(request)
        num_output_tokens = request.num_output_tokens
        output_left = expected - num_output_tokens
        work = self._weight * output_left if output_left > 1 else self._weight
        return work if num_output_tokens else work + prompt_left(request)

    def on_finished(self, request: RequestView) -> None:
        self._expected.pop(request.request_id, None)
        self.predictor.on_finished(request)
