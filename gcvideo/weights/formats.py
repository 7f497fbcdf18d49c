"""The tables: how gcvideo and each other toolkit name the parts of a network.

Parts of the trunk: ``stem_conv``, ``stem_norm``; of a residual block ``conv`` and ``norm`` (a, b, c in order) and
``shortcut_conv``, ``shortcut_norm``; ``head``. Of a non-local block: ``nl_conv`` (theta, phi, g, out), ``nl_norm``,
``nl_concat``. Of a context block: ``gc_mask``, and for each fusion (add, scale) ``gc_reduce``, ``gc_norm``,
``gc_expand`` of a bottleneck or ``gc_linear``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gcvideo.weights.naming import Limit, Naming, Words

_AFFINE = {word: word for word in ("weight", "bias")}
_BATCH_NORM = _AFFINE | {word: word for word in ("running_mean", "running_var", "num_batches_tracked")}
_MASK_BIAS = "the softmax over positions cancels a constant added to every logit"
_UNPADDED = "the first spatial pooling has no padding (55 x 55 positions of 224 x 224), so the logits differ slightly"


def _words(**own: Mapping[str, str]) -> Words:
    """The words of most toolkits, with a toolkit's own in their place."""
    stages = {word: word for word in "2345"}
    convs = {word: word for word in "abc"}
    projections = {word: word for word in ("theta", "phi", "g", "out")}
    return {"stage": stages, "conv": convs, "projection": projections, "bn": _BATCH_NORM, "leaf": _AFFINE, **own}


def _inside(prefix: str, block: Naming) -> dict[str, str]:
    """The templates of a block that stands at ``prefix`` of a network."""
    return {part: prefix + template for part, template in block.parts.items()}


# The non-local blocks of PySlowFast and Caffe2: after the sum, pooling before the convolutions.
_NON_LOCAL_LIMITS = (
    Limit("position", ("after_add",)),
    Limit("subsample", ("before", "none")),
    Limit("instantiation", ("embedded_gaussian", "dot_product")),
    Limit("norm", (True,)),
)

# ------------------------------------------------------------------------------------------------ context blocks alone

GCVIDEO_BLOCK = Naming(
    title="gcvideo ContextBlock",
    parts={
        "gc_mask": "pool.weight",
        "gc_reduce": "transform.{fusion}.fc1.{leaf}",
        "gc_norm": "transform.{fusion}.norm.{leaf}",
        "gc_expand": "transform.{fusion}.fc2.{leaf}",
        "gc_linear": "transform.{fusion}.fc.{leaf}",
    },
    words=_words(fusion={"add": "add", "scale": "scale"}),
    # Plain matrices and vectors throughout.
    dims={("gc_mask", "weight"): 2, ("gc_reduce", "weight"): 2, ("gc_expand", "weight"): 2, ("gc_norm", "weight"): 1}
    | {("gc_norm", "bias"): 1},
)
# xvjiarui/GCNet and open-mmlab/mmcv, ContextBlock: 1 x 1 convolutions, and a layer norm of shape (C/r, 1, 1).
MMCV_BLOCK = Naming(
    title="mmcv ContextBlock",
    parts={
        "gc_mask": "conv_mask.weight",
        "gc_reduce": "channel_{fusion}_conv.0.{leaf}",
        "gc_norm": "channel_{fusion}_conv.1.{leaf}",
        "gc_expand": "channel_{fusion}_conv.3.{leaf}",
    },
    words=_words(fusion={"add": "add", "scale": "mul"}),
    ignored={r"(.*\.)?conv_mask\.bias": _MASK_BIAS},
    zeros={"gc_mask": "conv_mask.bias"},
    dims={("gc_mask", "weight"): 4, ("gc_reduce", "weight"): 4, ("gc_expand", "weight"): 4, ("gc_norm", "weight"): 3}
    | {("gc_norm", "bias"): 3},
)
# timm/layers/global_context.py: the same, with a layer norm over channels of another epsilon.
TIMM_BLOCK = Naming(
    title="timm GlobalContext",
    parts={
        "gc_mask": "conv_attn.weight",
        "gc_reduce": "mlp_{fusion}.fc1.{leaf}",
        "gc_norm": "mlp_{fusion}.norm.{leaf}",
        "gc_expand": "mlp_{fusion}.fc2.{leaf}",
    },
    words=_words(fusion={"add": "add", "scale": "scale"}),
    ignored={r"(.*\.)?conv_attn\.bias": _MASK_BIAS},
    zeros={"gc_mask": "conv_attn.bias"},
    dims={("gc_mask", "weight"): 4, ("gc_reduce", "weight"): 4, ("gc_expand", "weight"): 4, ("gc_norm", "weight"): 1}
    | {("gc_norm", "bias"): 1},
    layer_norm_eps=1e-6,
)

# ------------------------------------------------------------------------------------------------------ whole networks

GCVIDEO = Naming(
    title="gcvideo",
    parts={
        "stem_conv": "stem.conv.weight",
        "stem_norm": "stem.norm.{bn}",
        "conv": "res{stage}.{block}.branch2.conv_{conv}.weight",
        "norm": "res{stage}.{block}.branch2.norm_{conv}.{bn}",
        "shortcut_conv": "res{stage}.{block}.branch1_conv.weight",
        "shortcut_norm": "res{stage}.{block}.branch1_norm.{bn}",
        "nl_conv": "res{stage}.{block}.context.{projection}.{leaf}",
        "nl_norm": "res{stage}.{block}.context.norm.{bn}",
        "nl_concat": "res{stage}.{block}.context.concat.weight",
        "head": "head.proj.{leaf}",
        **_inside("res{stage}.{block}.context.", GCVIDEO_BLOCK),
    },
    words=_words(fusion=GCVIDEO_BLOCK.words["fusion"]),
    container="model",
    dims={**GCVIDEO_BLOCK.dims, ("nl_conv", "weight"): 2, ("nl_concat", "weight"): 2},
)

# pytorchvideo/models/resnet.py (create_resnet). It has no non-local networks.
PYTORCHVIDEO = Naming(
    title="pytorchvideo",
    parts={
        "stem_conv": "blocks.0.conv.weight",
        "stem_norm": "blocks.0.norm.{bn}",
        "conv": "blocks.{stage}.res_blocks.{block}.branch2.conv_{conv}.weight",
        "norm": "blocks.{stage}.res_blocks.{block}.branch2.norm_{conv}.{bn}",
        "shortcut_conv": "blocks.{stage}.res_blocks.{block}.branch1_conv.weight",
        "shortcut_norm": "blocks.{stage}.res_blocks.{block}.branch1_norm.{bn}",
        "head": "blocks.5.proj.{leaf}",
    },
    words=_words(stage={"2": "1", "3": "2", "4": "3", "5": "4"}),
    container="model_state",
)
# C2D and I3D have a pooling layer between res2 and res3, which shifts the numbers of what follows.
PYTORCHVIDEO_POOLED = replace(
    PYTORCHVIDEO,
    title="pytorchvideo (C2D, I3D)",
    parts={**PYTORCHVIDEO.parts, "head": "blocks.6.proj.{leaf}"},
    words=_words(stage={"2": "1", "3": "3", "4": "4", "5": "5"}),
)

# facebookresearch/SlowFast: slowfast/models/{stem,resnet,nonlocal,head}_helper.py, single pathway.
PYSLOWFAST = Naming(
    title="PySlowFast",
    parts={
        "stem_conv": "s1.pathway0_stem.conv.weight",
        "stem_norm": "s1.pathway0_stem.bn.{bn}",
        "conv": "s{stage}.pathway0_res{block}.branch2.{conv}.weight",
        "norm": "s{stage}.pathway0_res{block}.branch2.{conv}_bn.{bn}",
        "shortcut_conv": "s{stage}.pathway0_res{block}.branch1.weight",
        "shortcut_norm": "s{stage}.pathway0_res{block}.branch1_bn.{bn}",
        "nl_conv": "s{stage}.pathway0_nonlocal{block}.conv_{projection}.{leaf}",
        "nl_norm": "s{stage}.pathway0_nonlocal{block}.bn.{bn}",
        "head": "head.projection.{leaf}",
    },
    words=_words(),
    aliases=(("nl_norm", "s{stage}.pathway0_nonlocal{block}.norm.{bn}"),),  # its first release
    container="model_state",
    dims={("nl_conv", "weight"): 5},
    limits=(*_NON_LOCAL_LIMITS, Limit("bias", (True,)), Limit("scale", (True,), "embedded_gaussian")),
)

# open-mmlab/mmaction2: mmaction/models/backbones/resnet3d.py, heads/i3d_head.py; mmcv/cnn/bricks/non_local.py.
# The non-local block belongs to the residual block and comes after its sum and ReLU: the same place as elsewhere.
MMACTION2 = Naming(
    title="mmaction2",
    parts={
        "stem_conv": "backbone.conv1.conv.weight",
        "stem_norm": "backbone.conv1.bn.{bn}",
        "conv": "backbone.layer{stage}.{block}.conv{conv}.conv.weight",
        "norm": "backbone.layer{stage}.{block}.conv{conv}.bn.{bn}",
        "shortcut_conv": "backbone.layer{stage}.{block}.downsample.conv.weight",
        "shortcut_norm": "backbone.layer{stage}.{block}.downsample.bn.{bn}",
        "nl_conv": "backbone.layer{stage}.{block}.non_local_block.{projection}.conv.{leaf}",
        "nl_norm": "backbone.layer{stage}.{block}.non_local_block.conv_out.bn.{bn}",
        "nl_concat": "backbone.layer{stage}.{block}.non_local_block.concat_project.conv.weight",
        "head": "cls_head.fc_cls.{leaf}",
    },
    words=_words(
        stage={"2": "1", "3": "2", "4": "3", "5": "4"},
        conv={"a": "1", "b": "2", "c": "3"},
        projection={"theta": "theta", "phi": "phi", "g": "g", "out": "conv_out"},
    ),
    container="state_dict",
    dims={("nl_conv", "weight"): 5, ("nl_concat", "weight"): 4},
    limits=(
        Limit("position", ("after_add",)),
        Limit("subsample", ("after", "none")),
        Limit("bias", (True,)),
        Limit("scale", (False,), "gaussian"),
    ),
    caveats={
        "i3d": "mmaction2's I3D configs also halve the frame rate in the stem and in its pooling (conv1_stride_t and "
        "pool1_stride_t are 2), which gcvideo does not: the logits differ, though every weight fits",
        "c2d": f"in mmaction2's C2D {_UNPADDED}",
    },
)
# With sub_sample, g and phi are Sequential(ConvModule, MaxPool3d).
MMACTION2_SUBSAMPLED = replace(
    MMACTION2,
    title="mmaction2 (sub_sample)",
    words={
        **MMACTION2.words,
        "projection": {"theta": "theta", "phi": "phi.0", "g": "g.0", "out": "conv_out"},
    },
)

# facebookresearch/video-nonlocal-net, and the Caffe2 files of PySlowFast's model zoo. Blob names have no dots; ``riv``
# holds the running variance in spite of its name (so reads slowfast/utils/c2_model_loading.py).
CAFFE2 = Naming(
    title="Caffe2",
    parts={
        "stem_conv": "conv1_w",
        "stem_norm": "res_conv1_bn_{bn}",
        "conv": "res{stage}_{block}_branch2{conv}_w",
        "norm": "res{stage}_{block}_branch2{conv}_bn_{bn}",
        "shortcut_conv": "res{stage}_{block}_branch1_w",
        "shortcut_norm": "res{stage}_{block}_branch1_bn_{bn}",
        "nl_conv": "nonlocal_conv{stage}_{block}_{projection}_{leaf}",
        "nl_norm": "nonlocal_conv{stage}_{block}_bn_{bn}",
        "head": "pred_{leaf}",
    },
    words=_words(
        bn={"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"},
        leaf={"weight": "w", "bias": "b"},
    ),
    ignored={
        r".*_momentum": "momentum of the optimizer",
        r"lr|model_iter|weight_decay(_bn)?|ONE|.*_iter": "a value of the training loop",
    },
    container="blobs",
    dims={("nl_conv", "weight"): 5},
    limits=_NON_LOCAL_LIMITS,
    caveats=dict.fromkeys(("slow", "c2d", "i3d"), f"in video-nonlocal-net {_UNPADDED}"),
)

# torchvision/models/resnet.py and timm/models/resnet.py: the same names for ResNet and ResNeXt. A context block is
# ``se`` in timm (attn_layer="gca") and ``context_block`` in GCNet's own ResNet.
TORCHVISION = Naming(
    title="torchvision / timm",
    parts={
        "stem_conv": "conv1.weight",
        "stem_norm": "bn1.{bn}",
        "conv": "layer{stage}.{block}.conv{conv}.weight",
        "norm": "layer{stage}.{block}.bn{conv}.{bn}",
        "shortcut_conv": "layer{stage}.{block}.downsample.0.weight",
        "shortcut_norm": "layer{stage}.{block}.downsample.1.{bn}",
        "head": "fc.{leaf}",
        **_inside("layer{stage}.{block}.se.", TIMM_BLOCK),
    },
    words=_words(
        stage={"2": "1", "3": "2", "4": "3", "5": "4"},
        conv={"a": "1", "b": "2", "c": "3"},
        fusion=TIMM_BLOCK.words["fusion"],
    ),
    ignored=TIMM_BLOCK.ignored,
    zeros={"gc_mask": "layer{stage}.{block}.se.conv_attn.bias"},
    dims=TIMM_BLOCK.dims,
    layer_norm_eps=TIMM_BLOCK.layer_norm_eps,
    limits=(Limit("position", ("after_1x1",)), Limit("relu", (True,))),
    image=True,
)
GCNET = replace(
    TORCHVISION,
    title="GCNet (2D)",
    parts={**TORCHVISION.parts, **_inside("layer{stage}.{block}.context_block.", MMCV_BLOCK)},
    words={**TORCHVISION.words, "fusion": MMCV_BLOCK.words["fusion"]},
    ignored=MMCV_BLOCK.ignored,
    zeros={"gc_mask": "layer{stage}.{block}.context_block.conv_mask.bias"},
    dims=MMCV_BLOCK.dims,
    layer_norm_eps=MMCV_BLOCK.layer_norm_eps,
)

# The formats by the names of the command line, each with its variants; the first is the one to write by default.
FORMATS: dict[str, tuple[Naming, ...]] = {
    "gcvideo": (GCVIDEO,),
    "pytorchvideo": (PYTORCHVIDEO, PYTORCHVIDEO_POOLED),
    "pyslowfast": (PYSLOWFAST,),
    "mmaction2": (MMACTION2, MMACTION2_SUBSAMPLED),
    "caffe2": (CAFFE2,),
    "torchvision": (TORCHVISION,),
    "timm": (TORCHVISION,),
    "gcnet": (GCNET,),
}
BLOCK_FORMATS: dict[str, Naming] = {"gcvideo": GCVIDEO_BLOCK, "mmcv": MMCV_BLOCK, "timm": TIMM_BLOCK}
