"""Run configs: typed dataclasses, filled from YAML files and ``key=value`` overrides.

=====================================  ================================================================================
``schema``, ``model``, ``data``        the dataclasses: every key with its type, default, documentation and checks
``load``                               YAML files, their bases, and overrides; the documentation of the keys
``checks``                             range checks, and dotted paths ``module:name`` to a user's own parts
=====================================  ================================================================================
"""

from gcvideo.config.checks import import_object, is_path
from gcvideo.config.data import AUGMENT_PRESETS, AugmentConfig, DataConfig, SplitConfig, TestConfig
from gcvideo.config.load import config_from_dict, config_to_dict, flatten, load_config, save_config, shipped_configs
from gcvideo.config.model import ContextConfig, ModelConfig
from gcvideo.config.schema import OptimConfig, RunConfig, TrainConfig
