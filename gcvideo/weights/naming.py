"""Names of tensors in gcvideo and in other toolkits: a key of one to its part of the network, a part to a key.

``model_fields`` finds from names and shapes the config of the network that a file of weights belongs to.

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
from itertools import cycle
from typing import Any, NamedTuple

from torch import Tensor

from gcvideo.config.model import BLOCKS_PER_STAGE
from gcvideo.errors import CheckpointError
from gcvideo.files import read_yaml
from gcvideo.models.resnet3d import TEMPORAL_KERNELS
from gcvideo.weights.reading import Weights

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
        def group(match: re.Match[str]) -> str:
            own = sorted(self._own_to_common.get(match[1], ()), key=len, reverse=True)
            words = "|".join(map(re.escape, own)) if own else r"\d+"
            return f"(?P<{match[1]}>{words})"

        return [(part, re.compile(_ESCAPED_FIELD.sub(group, re.escape(text)))) for part, text in self.parts.items()]


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


def model_fields(weights: Weights, naming: Naming, *, arch: str | None = None) -> dict[str, Any]:
    """Fields of ``ModelConfig`` that a file of weights shows: by its shapes, its names, and the config it may hold.

    What none of them tells is left at its default or given by the caller: dropout, the instantiation of a non-local
    block that has theta and phi, and whether frames are pooled in time.

    Args:
        weights: the file.
        naming: its names.
        arch: "slow", "c2d" or "i3d", overriding what the file suggests; by default the architecture that the file
            states, else the one with the most similar temporal kernels.

    Raises:
        CheckpointError: these are not the weights of a ResNet.
    """
    if naming is GCVIDEO and isinstance(weights.extra.get("config"), Mapping):
        return dict(weights.extra["config"]["model"])
    parts = ((naming.parse(key), tensor) for key, tensor in weights.tensors.items())
    ours = {str(GCVIDEO.key(part)): tensor for part, tensor in parts if part is not None}
    stated = _stated(weights, naming)
    stated_arch = stated.pop("arch", None)
    values = _trunk(ours, arch=arch or stated_arch, where=weights.path)
    if not naming.image:
        values.setdefault("arch", "c2d")  # mmaction2's C2D is a network of 2D convolutions
    if context := _context(ours):
        if naming is not GCVIDEO and context.get("instantiation") == "gaussian":
            context["scale"] = False  # mmcv never scales the plain gaussian
        values["context"] = {**stated, **context} if context["kind"] == "nl" else context
    return values


def _stated(weights: Weights, naming: Naming) -> dict[str, Any]:
    """Architecture, and fields of a non-local ``ContextConfig``, that names or the config inside state."""
    stated: dict[str, Any] = {k: v[0] for k, v in naming.when.items() if k == "subsample" or len(v) == 1}
    meta = weights.extra.get("meta")
    text = str(weights.extra.get("cfg") or (meta.get("cfg") if isinstance(meta, Mapping) else ""))
    for name, pattern in TABLES["stated"].items():
        if match := re.search(pattern, text):
            word = match[match.lastindex or 0]
            stated[name] = TABLES["translated"].get(word, word)
    if pool := re.search(r"\bPOOL:([\s\d,\[\]-]+)", text):  # PySlowFast's kernels of keys and values
        stated["subsample"] = "before" if max(map(int, re.findall(r"\d+", pool[1]))) > 1 else "none"
    return stated


def _trunk(ours: Mapping[str, Tensor], *, arch: str | None, where: str) -> dict[str, Any]:
    """Fields of the network without its blocks, from tensors by gcvideo's keys."""
    blocks = _blocks(ours, "branch2")
    counts = tuple(map(len, blocks.values()))
    bottleneck = "res2.0.branch2.conv_c.weight" in ours
    depths = [n for n, known in BLOCKS_PER_STAGE.items() if counts == known and bottleneck == (n >= 50)]
    first = [ours.get(key) for key in ("stem.conv.weight", *(f"res2.0.branch2.conv_{x}.weight" for x in "ab"))]
    if not depths or any(tensor is None for tensor in first):
        raise CheckpointError(f"{where}: has {counts} blocks in res2 to res5, like no ResNet of depth 18 to 152")
    stem, conv_a, conv_b = (tensor.shape for tensor in first if tensor is not None)
    values: dict[str, Any] = {"depth": depths[0], "width": stem[0]}
    if bottleneck:
        values["groups"] = conv_a[0] // conv_b[1]
        values["width_per_group"] = conv_a[0] * 64 // (stem[0] * values["groups"])
    if "head.proj.weight" in ours:
        values["num_classes"] = ours["head.proj.weight"].shape[0]
    if len(stem) == 4:
        return {**values, "arch": arch} if arch else values
    if any(".branch2.conv_b." in key and tensor.shape[2] > 1 for key, tensor in ours.items()):
        return {**values, "arch": "i3d", "inflation": "3x3x3"}  # which of them have it is a matter of the architecture
    kernels = {"stem": [stem[2]]}
    for stage, numbers in blocks.items():
        convs = (ours.get(f"{stage}.{number}.branch2.conv_a.weight") for number in numbers)
        kernels[stage] = [conv.shape[2] for conv in convs if conv is not None]
    same = {  # for each architecture and stage, which blocks have its temporal kernels
        name: {stage: [k == other for k, other in zip(along, cycle(own[stage]))] for stage, along in kernels.items()}
        for name, own in TEMPORAL_KERNELS.items()
    }
    arch = arch or max(same, key=lambda name: sum(map(sum, same[name].values())))
    differing = {stage: kernels[stage] for stage, equal in same[arch].items() if not all(equal)}
    return {**values, "arch": arch, **({"temporal_kernels": differing} if differing else {})}


def _blocks(ours: Mapping[str, Tensor], part: str) -> dict[str, list[int]]:
    """Indices of the blocks of each stage that have such a part."""
    matches = (re.match(rf"(res\d)\.(\d+)\.{part}", key) for key in ours)
    found = sorted({(match[1], int(match[2])) for match in matches if match})
    return {stage: [number for other, number in found if other == stage] for stage, _ in found}


def _context(ours: Mapping[str, Tensor]) -> dict[str, Any]:
    """Fields of ``ContextConfig``, as the first block shows them; empty where there is no block."""
    if not (placed := _blocks(ours, "context")):
        return {}
    stage, numbers = next(iter(placed.items()))
    prefix = f"{stage}.{numbers[0]}.context."
    block = {key.removeprefix(prefix): tensor for key, tensor in ours.items() if key.startswith(prefix)}
    values: dict[str, Any] = {"stages": placed}
    if "g.weight" in block:
        g, found = block["g.weight"], {"kind": "nl", "norm": "norm.weight" in block, "bias": "g.bias" in block}
        if "concat.weight" in block:
            found["instantiation"] = "concatenation"
        elif "theta.weight" not in block:
            found["instantiation"] = "gaussian"
        return {**values, **found, "reduction": g.shape[1] // g.shape[0]}
    fusions = [fusion for fusion in ("scale", "add") if any(key.startswith(f"transform.{fusion}.") for key in block)]
    layers = f"transform.{fusions[0]}."
    values |= {"kind": "gc" if "pool.weight" in block else "se", "fusion": "_".join(fusions)}
    if (reduce := block.get(f"{layers}fc1.weight")) is None:
        return {**values, "transform": "linear", "bias": f"{layers}fc.bias" in block}
    values["transform"] = "bottleneck" if f"{layers}norm.weight" in block else "squeeze"
    return {**values, "bias": f"{layers}fc1.bias" in block, "reduction": reduce.shape[1] // reduce.shape[0]}
