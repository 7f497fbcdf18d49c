"""Run configs: typed dataclasses, filled from YAML files and ``key=value`` overrides.

=====================================  ================================================================================
``schema``, ``model``, ``data``,       the dataclasses: every key with its type, default, documentation and checks
``train``
``load``                               YAML files, their bases, and overrides
``objects``                            dotted paths ``module:name`` to a user's own parts
``reference``                          the documentation of the keys: ``--help-config``, and the page of the site
``checks``                             range checks
=====================================  ================================================================================
"""

from gcvideo.config.data import AUGMENT_PRESETS, AugmentConfig, DataConfig, SplitConfig, TestConfig
from gcvideo.config.load import config_from_dict, config_to_dict, flatten, load_config, save_config, shipped_configs
from gcvideo.config.model import ContextConfig, ModelConfig
from gcvideo.config.objects import import_object, is_path
from gcvideo.config.reference import reference_markdown
from gcvideo.config.schema import RunConfig
from gcvideo.config.train import OptimConfig, TrainConfig
