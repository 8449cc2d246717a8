"""The part of the scenario format that describes what disturbs requests and steps at random."""

from __future__ import annotations

from sim.scenario.types import NonNegativeFloat, Probability, Ratio, SpellSeconds, Strict


class ClientNoiseConfig(Strict):
    """Some requests are late: at random, a garbage collection or another process holds up the client or the server in
    front of the engine. TTFT and E2E of such a request are longer by one exponentially distributed time. The mean over
    all requests stays ``client_overhead_ms``, unless that is shorter than what noise alone takes."""

    share: Probability
    """Requests that are late, of all; 0 = none."""
    mean_ms: NonNegativeFloat
    """How late those are in the mean."""


class StepNoiseConfig(Strict):
    """Spells in which steps take longer, as other work on the machine or a lower clock makes them. They begin at
    random (exponentially distributed times between them), last exponentially distributed times, and come to each
    replica on its own. Step times outside of them stay, so the mean is longer."""

    every_s: SpellSeconds
    """Mean seconds from the end of a spell to the next."""
    for_s: SpellSeconds
    """Mean length of a spell in seconds."""
    factor: Ratio
    """What accelerator times of steps that begin in a spell are multiplied by, at least 1."""


class NoiseConfig(Strict):
    """What disturbs requests and steps at random, from streams of its own: other draws stay as they are."""

    client: ClientNoiseConfig | None = None
    """Requests that are late; null = ``share: 0.02, mean_ms: 10`` or as fitted, for ``kind: profile`` where
    ``client_overhead_ms`` is not given; none otherwise."""
    step: StepNoiseConfig | None = None
    """Spells of slow steps; null = as fitted (``latency.fit``), else none."""
