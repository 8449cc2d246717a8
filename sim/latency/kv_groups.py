"""How vLLM groups layers that keep all KV and layers with a window, and what the padding of the groups costs.

``_get_kv_cache_groups_uniform_page_size`` of ``v1/core/kv_cache_utils.py``: all groups have as many layers as the
smaller kind has (as the larger, where it has less than half as many more), the last of each kind is padded. A block
belongs to one group.
"""

from __future__ import annotations

from dataclasses import dataclass

from sim.latency.attention_kinds import GroupedAttention
from sim.latency.kv_layout import KvGroup
from sim.latency.model_spec import ModelSpec

LARGER_KIND_DECIDES = 1.5


@dataclass(frozen=True, slots=True)
class KvGroups:
    """Groups of equally many layers. 5 full and 29 windowed layers: one group and six, of 5 layers each."""

    layers_each: int
    num_full: int
    num_window: int

    @property
    def num_groups(self) -> int:
        """Groups of either kind."""
        return self.num_full + self.num_window

    @property
    def padded_layers(self) -> int:
        """Layers that memory is set aside for."""
        return self.layers_each * self.num_groups


def kv_groups(num_full: int, num_window: int) -> KvGroups:
    """Group that many layers; one group where there is one kind."""
    if not num_full or not num_window:
        return KvGroups(num_full + num_window, int(bool(num_full)), int(bool(num_window)))
    smaller, larger = sorted((num_full, num_window))
    each = larger if larger < LARGER_KIND_DECIDES * smaller else smaller
    return KvGroups(each, -(-num_full // each), -(-num_window // each))


def groups_of(model: ModelSpec, block_size: int) -> tuple[KvGroup, ...]:
    """The KV groups of a model that has layers with one window beside layers that keep all KV, of equal heads, as vLLM
    puts them: the kind that comes first in the model first. Empty for any other model."""
    mixers = [kind.mixer for kind in model.layer_list]
    grouped = [mixer for mixer in mixers if isinstance(mixer, GroupedAttention) and mixer.chunk is None]
    windows = [mixer.window for mixer in grouped]
    if not model.is_plain or len(grouped) != len(mixers) or len(set(windows)) != 2 or None not in windows:
        return ()
    num_full = windows.count(None)
    groups = kv_groups(num_full, len(windows) - num_full)
    found: list[KvGroup] = []
    for window in dict.fromkeys(windows):
        num_groups = groups.num_full if window is None else groups.num_window
        layers = range(windows.count(window))
        for number in range(num_groups):
            held = len(layers[number::num_groups])
            found.append(KvGroup("full" if window is None else "window", block_size, window, held))
    return tuple(found)
