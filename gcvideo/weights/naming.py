"""Names of tensors in gcvideo and in other toolkits: a key of one to its part of the network, a part to a key.

Every 3D ResNet consists of the same few parts: the convolution of the stem, the norms of a residual branch, the
projections of a non-local block. A ``Naming`` gives for each part a template of its keys, with named fields:

    conv: res{stage}.{block}.branch2.conv_{conv}.weight

A field is a number, or one of the words listed for it. The words are common to all namings on the left and the
toolkit's own on the right: ``conv: {a: "1", b: "2", c: "3"}``. So a toolkit is a table of a dozen lines, what can be
read can be written, and a key goes from one toolkit to another by way of its part. The tables are in ``formats.yaml``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from gcvideo.files import read_yaml

_ESCAPED_FIELD = re.compile(r"\\\{(\w+)\\\}")
TABLES = read_yaml(__file__, "formats.yaml")
WORDS = {field: {word: word for word in words} for field, words in TABLES["words"].items()}


class Part(NamedTuple):
    """Part of a network that one tensor is: ``Part("conv", {"stage": "4", "block": "0", "conv": "a"})``."""

    name: str
    fields: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Naming:
    """Names of one toolkit.

    Attributes:
        title: the toolkit's name, for messages.
        parts: part to template.
        words: for each field, the common words and the toolkit's own.
        ignored: pattern of keys that are no weights of the network, to the reason why they are left out.
        container: the key that holds the state dict in a file of this toolkit; empty: the file is the state dict.
        dims: part to the number of dimensions of its weight (of a layer norm's bias too), where it is not gcvideo's.
        image: a network for single pictures: its kernels have no time.
        frozen_norms: a file may hold scale and bias alone of a batch norm.
        layer_norm_eps: epsilon of the layer norm in context blocks.
        limits: values that fields of ``ContextConfig`` can have in the toolkit: ``field``, ``allowed``, and perhaps the
            ``instantiation`` that it holds for.
        when: values of ``model.arch`` or ``model.context.subsample`` that the toolkit uses this variant for.
        caveats: architecture to the way in which the toolkit's own network of that name differs besides the weights.
    """

    title: str
    parts: Mapping[str, str]
    words: Mapping[str, Mapping[str, str]]
    ignored: Mapping[str, str] = field(default_factory=dict)
    container: str = ""
    dims: Mapping[str, int] = field(default_factory=dict)
    image: bool = False
    frozen_norms: bool = False
    layer_norm_eps: float = 1e-5
    limits: tuple[Mapping[str, Any], ...] = ()
    when: Mapping[str, list[str]] = field(default_factory=dict)
    caveats: Mapping[str, str] = field(default_factory=dict)

    def parse(self, key: str) -> Part | None:
        """Part that a key names, or None."""
        for name, pattern in self._patterns:
            if match := pattern.fullmatch(key):
                words = {f: self._own_to_common[f][w] if f in WORDS else w for f, w in match.groupdict().items()}
                return Part(name, words)
        return None

    def key(self, part: Part) -> str | None:
        """Key of a part, or None where the toolkit has no such part."""
        try:
            fields = {f: self.words[f][w] if f in WORDS else w for f, w in part.fields.items()}
        except KeyError:  # a word that the toolkit lacks, such as num_batches_tracked in Caffe2
            return None
        return self.parts.get(part.name, "").format(**fields) or None

    def reason_ignored(self, key: str) -> str | None:
        """Reason why a key is no weight of the network, where that is known."""
        return next((reason for pattern, reason in self.ignored.items() if re.fullmatch(pattern, key)), None)

    def knows(self, key: str) -> bool:
        """Whether a key is one of the toolkit's."""
        return self.parse(key) is not None or self.reason_ignored(key) is not None

    @cached_property
    def _own_to_common(self) -> dict[str, dict[str, str]]:
        return {name: {own: common for common, own in words.items()} for name, words in self.words.items()}

    @cached_property
    def _patterns(self) -> list[tuple[str, re.Pattern[str]]]:
        return [(name, self._compile(text)) for name, text in self.parts.items()]

    def _compile(self, template: str) -> re.Pattern[str]:
        def group(match: re.Match[str]) -> str:
            own = sorted(self._own_to_common.get(match[1], ()), key=len, reverse=True)
            words = "|".join(map(re.escape, own)) if own else r"\d+"
            return f"(?P<{match[1]}>{words})"

        return re.compile(_ESCAPED_FIELD.sub(group, re.escape(template)))


def _naming(entry: dict[str, Any], blocks: Mapping[str, Naming]) -> Naming:
    """Naming of an entry; ``block`` names the context block inside a network and the prefix where it stands."""
    entry = {**entry, "words": {**WORDS, **entry.get("words", {})}}
    if place := entry.pop("block", None):
        block, prefix = blocks[place["names"]], place["prefix"]
        entry["parts"] = entry["parts"] | {part: prefix + template for part, template in block.parts.items()}
        entry["words"]["fusion"] = block.words["fusion"]
        entry["dims"] = {**entry.get("dims", {}), **block.dims}
        entry["layer_norm_eps"] = block.layer_norm_eps
    return Naming(**entry)


BLOCK_FORMATS = {name: _naming(entry, {}) for name, entry in TABLES["blocks"].items()}
# Formats by the names of the command line, each with its variants; the first is the one to write by default.
FORMATS = {name: [_naming(entry, BLOCK_FORMATS) for entry in variants] for name, variants in TABLES["networks"].items()}
GCVIDEO = FORMATS["gcvideo"][0]
