"""Run configs: typed dataclasses (``schema``), their YAML and ``key=value`` (``load``), dotted paths (``objects``)."""

from gcvideo.config.load import config_from_dict, config_to_dict, find_config, load_config, save_config, shipped_configs
from gcvideo.config.objects import import_object, is_path
from gcvideo.config.schema import (
    BLOCKS_PER_STAGE,
    STAGES,
    AugmentConfig,
    ContextConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    SplitConfig,
    TestConfig,
    TrainConfig,
)

__all__ = [
    "BLOCKS_PER_STAGE",
    "STAGES",
    "AugmentConfig",
    "ContextConfig",
    "DataConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "SplitConfig",
    "TestConfig",
    "TrainConfig",
    "config_from_dict",
    "config_to_dict",
    "find_config",
    "import_object",
    "is_path",
    "load_config",
    "save_config",
    "shipped_configs",
]
