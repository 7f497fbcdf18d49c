"""Weights of other toolkits and of gcvideo's own runs: read, converted, and loaded into a network.

==============  ====================================================================================================
``load``        loading into a network: a checkpoint restored, or initial weights of any toolkit
``reading``     files of weights, read without running code that they may hide; the Hugging Face Hub
``naming``      names of tensors in each toolkit, and the config that they show; ``formats.yaml`` holds the tables
``convert``     conversion of state dicts between toolkits, inflation of 2D kernels to 3D, account of every tensor
==============  ====================================================================================================
"""

from gcvideo.weights.load import find_checkpoint, load_initial_weights, read_published, restore_model

__all__ = ["find_checkpoint", "load_initial_weights", "read_published", "restore_model"]
