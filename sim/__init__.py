"""simrun: LLM serving, simulated step for step as vLLM's V1 scheduler does it."""

from __future__ import annotations

__version__ = "0.1.0"
