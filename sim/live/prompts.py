"""Prompts of a given length: content that is shared where the workload shares it and nowhere else.

What a prompt says does not matter for its timing, only which beginnings are equal. Token ids (or words) are drawn from
a stream named after the content they belong to, so that equal content is equal tokens in any order of sending. A salt,
new in each run, keeps a second run from finding the first one's prompts in the server's prefix cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sim.seeds import rng
from sim.workload.table import NO_GROUP, IntColumn, RequestTable

WORDS = (
    *("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state"),
    *("family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week", "company", "system"),
    *("program", "question", "work", "government", "number", "night", "point", "home", "water", "room", "mother"),
    *("area", "money", "story", "fact", "month", "lot", "right", "study", "book", "eye", "job", "word", "business"),
    *("issue", "side", "kind", "head", "house", "service", "friend", "father", "power", "hour", "game", "line", "end"),
)
"""Common words: one token each in the vocabularies of most models, so that a text of n is about n tokens long."""

Segment = tuple[int, int]


def shared_segments(table: RequestTable) -> list[list[Segment]]:
    """The shared beginnings of each row's prompt, as (content id, end in tokens).

    A conversation's turns share all they have in common of their prompts: it is cut at each turn's length. What
    the server answers is not known beforehand, so the next turn repeats the place of an answer with tokens of its own.
    """
    offsets = table.segment_offsets.tolist()
    ids, ends = table.segment_content_id.tolist(), table.segment_end_tokens.tolist()
    found = [list(zip(ids[a:b], ends[a:b], strict=True)) for a, b in pairwise(offsets)]
    next_id = 1 + int(table.segment_content_id.max(initial=-1))
    sessions: dict[int, list[int]] = {}
    for row, session in enumerate(table.session.tolist()):
        if session != NO_GROUP:
            sessions.setdefault(session, []).append(row)
    lengths = table.input_tokens.tolist()
    for rows in sessions.values():
        cuts = sorted({lengths[row] for row in rows})
        for row in rows:
            start = found[row][-1][1] if found[row] else 0
            found[row] += [(next_id + k, cut) for k, cut in enumerate(cuts) if start < cut <= lengths[row]]
        next_id += len(cuts)
    return found


@dataclass(frozen=True, slots=True)
class PromptMaker:
    """Turns rows into token ids."""

    salt: str
    low: int
    """First id to be drawn."""
    high: int
    """One past the last."""

    def token_ids(self, row: int, num_tokens: int, segments: list[Segment]) -> IntColumn:
        """``num_tokens`` ids: those of the segments, then the row's own."""
        parts, start = [], 0
        for content, end in segments:
            end = min(end, num_tokens)
            parts.append(self._stream(f"shared/{content}/{start}", end - start))
            start = end
        parts.append(self._stream(f"own/{row}", num_tokens - start))
        return np.concatenate(parts)

    def text(self, row: int, num_tokens: int, segments: list[Segment]) -> str:
        """About as many tokens as words, shared where the ids would be."""
        words = PromptMaker(self.salt, 0, len(WORDS)).token_ids(row, num_tokens, segments)
        return " ".join(WORDS[each] for each in words.tolist())

    def _stream(self, name: str, count: int) -> IntColumn:
        return rng(0, "observe", self.salt, name).integers(self.low, self.high, size=max(0, count), dtype=np.int64)
