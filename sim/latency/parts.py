"""What the time of a step's terms stands on: measured or not, and how wrong it is as far as that is known.

A part is some of a term's time. Its error is a share of the time that is charged: 0.03 = off by 3 %. Its kind is one of

- ``measured``: this very shape; the profile's error of points left out.
- ``interpolated``: between measured shapes or numbers of GPUs; the profile's error of whole shapes left out.
- ``extrapolated``: beyond them; what a tenth of the shapes left out exceed.
- ``other_format``: curves of another number format, scaled by the speed of light.
- ``other_gpu``: measured on the same chip with other memory.
- ``stand_in``: a formula, or curves of something else, as the part's text says.
- ``estimate``: an engineer's figure for what no table holds.
- ``assumption``: what the scenario says, which has no error here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

UNMEASURED_ERROR = 0.25
"""Of what no measurement stands behind: an engineer's figure. Rooflines are off by 13 % from the steps of the built-in
profiles in the median, and a tenth of them by 35 to 41 % (``docs/uncertainty.md``)."""


class Part(NamedTuple):
    """Some of a term's time: what it stands on, its error, and the same in words."""

    kind: str
    error: float
    what: str


def one_part(kind: str, error: float, what: str) -> list[dict[str, Any]]:
    """A term that stands on one thing, as ``describe`` of a step cost tells it."""
    return [{"share": 1.0, **Part(kind, error, what)._asdict()}]
