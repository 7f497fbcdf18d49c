"""Account of every tensor of a conversion or of loading."""

import re
from collections import defaultdict
from dataclasses import dataclass, field


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
        result = [f"{self.source}: {len(self.copied)} tensors copied"]
        kinds = {"dropped": self.dropped, "not matched": self.unmatched, "not in the source": self.missing}
        for title, entries in kinds.items():
            by_reason: defaultdict[str, list[str]] = defaultdict(list)
            for key, reason in entries.items():
                by_reason[reason].append(key)
            for reason, keys in by_reason.items():
                result.append(f"{title} ({len(keys)}): {', '.join(gather(keys))}: {reason}")
        return result + [f"note: {note}" for note in self.notes]


def gather(keys: list[str]) -> list[str]:
    """Short list of keys: those that differ only in the number of their block become one. No key is lost.

    >>> gather(["res4.0.a.weight", "res4.2.a.weight", "head.bias"])
    ['res4.{0,2}.a.weight', 'head.bias']
    """
    numbers: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for key in keys:
        before, number, after = re.fullmatch(r"(.*?)(\.\d+\.|$)(.*)", key).groups()  # type: ignore[union-attr]
        numbers[before, after].append(number.strip("."))
    return [
        f"{before}.{{{','.join(found)}}}.{after}" if len(found) > 1 else ".".join(filter(None, (before, *found, after)))
        for (before, after), found in numbers.items()
    ]
