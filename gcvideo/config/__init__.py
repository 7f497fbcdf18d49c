"""Configs: typed dataclasses of a run (``schema``), filled from YAML and ``key=value`` (``load``)."""

from gcvideo.config.load import config_from_dict, config_to_dict, find_config, load_config, save_config, shipped_configs
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
    "load_config",
    "save_config",
    "shipped_configs",
]
