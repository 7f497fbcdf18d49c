"""Account of every tensor of a conversion or of loading."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Report:
    """Account of one conversion, inflation or loading: what was copied, dropped, unmatched and missing.

    Attributes:
        source: the file or network the tensors came from.
        copied: keys of the result whose values came from the source.
        dropped: keys of the source that the result does not need, with the reason.
        unmatched: keys of the source that found no place in the result, with the reason.
        missing: keys of the result that the source has nothing for, with what became of them.
        notes: remarks that hold for the whole (assumptions, differences between the toolkits).
    """

    source: str = ""
    copied: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    unmatched: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Report as text: one line per reason, its keys gathered as ``res4.{0,1,2}.branch``."""
        result = [f"{self.source}: {len(self.copied)} tensors copied" if self.source else f"{len(self.copied)} copied"]
        for title, entries in (
            ("dropped", self.dropped),
            ("not matched", self.unmatched),
            ("not in the source", self.missing),
        ):
            by_reason: defaultdict[str, list[str]] = defaultdict(list)
            for key, reason in entries.items():
                by_reason[reason].append(key)
            for reason, keys in by_reason.items():
                result.append(f"{title} ({len(keys)}): {', '.join(gather(keys))}: {reason}")
        return result + [f"note: {note}" for note in self.notes]

    def to_dict(self) -> dict[str, Any]:
        """Report as plain values for JSON."""
        return {
            "source": self.source,
            "copied": list(self.copied),
            "dropped": dict(self.dropped),
            "unmatched": dict(self.unmatched),
            "missing": dict(self.missing),
            "notes": list(self.notes),
        }


def gather(keys: list[str]) -> list[str]:
    """Short list of keys: those that differ in one place, their last word or the number of their block, become one.

    >>> gather(["res4.0.a.weight", "res4.0.a.bias", "res4.2.a.weight", "res4.2.a.bias", "head.bias"])
    ['res4.{0,2}.a.{weight,bias}', 'head.bias']
    """
    by_leaf = _merged((before + dot, leaf, "") for before, dot, leaf in (key.rpartition(".") for key in keys))
    parts = [(key, re.match(r"(.*\.)(\d+)(\..*)$", key)) for key in by_leaf]
    return _merged((match[1], match[2], match[3]) if match else (key, "", "") for key, match in parts)


def _merged(keys: Iterable[tuple[str, str, str]]) -> list[str]:
    """Keys (before, middle, after) that differ in the middle alone become one: before{middle,middle}after."""
    middles: dict[tuple[str, str], list[str]] = {}
    for before, middle, after in keys:
        middles.setdefault((before, after), []).append(middle)
    return [
        f"{before}{{{','.join(choices)}}}{after}" if len(choices) > 1 else f"{before}{choices[0]}{after}"
        for (before, after), choices in middles.items()
    ]
