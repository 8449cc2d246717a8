"""The plugin's scheduler in a server that a test can slow down: while a file exists, every step takes longer."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from http_server import SLOW_FILE

from policies.vllm_plugin import PolicyScheduler

SLOW_STEP_S = 0.05
"""With it a step takes at least this long: 15,000 tokens of a request take 750 s on any machine."""


class SlowScheduler(PolicyScheduler):
    """Decides as the plugin does."""

    def schedule(self, throttle_prefills: bool = False) -> Any:
        """One step of the plugin, late."""
        if Path(os.environ[SLOW_FILE]).exists():
            time.sleep(SLOW_STEP_S)
        return super().schedule(throttle_prefills)
