"""What each toolkit calls the tensors of the same network, as data.

Every 3D ResNet consists of the same few parts: the convolution of the stem, the norms of a residual branch, the
projections of a non-local block. A ``Naming`` gives for each part a template of its keys, with named fields:

    "conv": "res{stage}.{block}.branch2.conv_{conv}.weight"

A field is a number, or one of the words listed for it. The words are common to all namings on the left and the
toolkit's own on the right: ``{"conv": {"a": "1", "b": "2", "c": "3"}}``. So a toolkit is a table of a dozen lines, what
can be read can be written, and a key goes from one toolkit to another by way of its part. The tables are in
``formats.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

Words = Mapping[str, Mapping[str, str]]
_FIELD = re.compile(r"\{(\w+)\}")


class Part(NamedTuple):
    """What one tensor is: ``Part("conv", {"stage": "4", "block": "0", "conv": "a"})``."""

    name: str
    fields: Mapping[str, str]

    @property
    def leaf(self) -> str:
        """``weight``, ``bias``, ``running_mean`` ...; the last word of the key."""
        return self.fields.get("leaf", "weight")


class Limit(NamedTuple):
    """Values that a field of ``ContextConfig`` can take in a toolkit; with ``instantiation`` for that one alone."""

    field: str
    allowed: tuple[str | bool, ...]
    instantiation: str | None = None


@dataclass(frozen=True, kw_only=True)
class Naming:
    """One toolkit's keys.

    Attributes:
        title: the toolkit's name, for messages.
        parts: part to template.
        words: for each field, the common words and the toolkit's own.
        aliases: further (part, template) pairs, of older versions: read, never written.
        ignored: pattern of keys that are no weights of the network, to the reason why they are left out.
        container: the key that holds the state dict in a file of this toolkit; empty: the file is the state dict.
        dims: (part, leaf) to the number of dimensions of the tensor, where it is not gcvideo's.
        zeros: part to the template of a bias that the toolkit has beside it and gcvideo does not; written as zero.
        image: a network for single pictures: its kernels have no time.
        layer_norm_eps: epsilon of the layer norm in context blocks.
        limits: what its context or non-local blocks can be, beside what their weights show.
        caveats: architecture to the way in which the toolkit's own network of that name differs beside the weights.
    """

    title: str
    parts: Mapping[str, str]
    words: Words = field(default_factory=dict)
    aliases: tuple[tuple[str, str], ...] = ()
    ignored: Mapping[str, str] = field(default_factory=dict)
    container: str = ""
    dims: Mapping[tuple[str, str], int] = field(default_factory=dict)
    zeros: Mapping[str, str] = field(default_factory=dict)
    image: bool = False
    layer_norm_eps: float = 1e-5
    limits: tuple[Limit, ...] = ()
    caveats: Mapping[str, str] = field(default_factory=dict)

    def parse(self, key: str) -> Part | None:
        """The part that a key names, or None."""
        for name, pattern in self._patterns:
            match = pattern.fullmatch(key)
            if match:
                return Part(name, {field: self._common(field, word) for field, word in match.groupdict().items()})
        return None

    def key(self, part: Part) -> str | None:
        """The key of a part, or None where the toolkit has no such part."""
        return self._render(self.parts.get(part.name), part)

    def zero_key(self, part: Part) -> str | None:
        """The key of the bias that stands beside a part in this toolkit alone, or None."""
        return self._render(self.zeros.get(part.name), part)

    def reason_ignored(self, key: str) -> str | None:
        """Why a key is no weight of the network, where that is known."""
        return next((reason for pattern, reason in self.ignored.items() if re.fullmatch(pattern, key)), None)

    def _render(self, template: str | None, part: Part) -> str | None:
        if template is None:
            return None
        try:
            return template.format(**{f: self.words[f][w] if f in self.words else w for f, w in part.fields.items()})
        except KeyError:  # a word that the toolkit lacks, such as num_batches_tracked in Caffe2
            return None

    def _common(self, field: str, word: str) -> str:
        return self._inverse_words[field][word] if field in self.words else word

    @cached_property
    def _inverse_words(self) -> dict[str, dict[str, str]]:
        return {field: {own: common for common, own in table.items()} for field, table in self.words.items()}

    @cached_property
    def _patterns(self) -> list[tuple[str, re.Pattern[str]]]:
        return [(name, self._compile(template)) for name, template in (*self.parts.items(), *self.aliases)]

    def _compile(self, template: str) -> re.Pattern[str]:
        pattern, position = "", 0
        for match in _FIELD.finditer(template):
            own = sorted(self._inverse_words.get(match[1], ()), key=len, reverse=True)
            choice = "|".join(map(re.escape, own)) if own else r"\d+"
            pattern += re.escape(template[position : match.start()]) + f"(?P<{match[1]}>{choice})"
            position = match.end()
        return re.compile(pattern + re.escape(template[position:]))
