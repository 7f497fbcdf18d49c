"""Weights of other toolkits and of gcvideo's own runs: read, converted, and loaded into a network.

==============  ====================================================================================================
``load``        loading into a network: a checkpoint restored, or initial weights of any toolkit
``reading``     reading of files without running code that they may hide
``hub``         published networks on the Hugging Face Hub
``naming``      names of tensors in each toolkit; ``formats.yaml`` holds the tables
``inflate``     inflation of 2D kernels to 3D
``infer``       config of the network that a file of weights belongs to
``convert``     conversion of state dicts between toolkits
``report``      account of every tensor
==============  ====================================================================================================
"""

from gcvideo.weights.load import find_checkpoint, load_initial_weights, read_published, restore_model

__all__ = ["find_checkpoint", "load_initial_weights", "read_published", "restore_model"]
