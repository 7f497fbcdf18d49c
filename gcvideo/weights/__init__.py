"""Weights from elsewhere: safe reading, inflation of 2D networks, and other toolkits' checkpoints both ways.

==============  ====================================================================================================
``reading``     files of tensors, read without running what may hide in them
``naming``      what a toolkit calls the parts of a network, as data; ``formats`` holds the tables
``inflate``     2D kernels to 3D and back
``infer``       which network a set of weights belongs to; ``stated`` adds what the file says beside them
``convert``     one toolkit's state dict to another's
``load``        the weights of a file into a network: a checkpoint restored, or initial weights
``report``      the account of every tensor
==============  ====================================================================================================
"""

from gcvideo.weights.load import find_checkpoint, load_initial_weights, restore_model
from gcvideo.weights.reading import Weights, read_weights, write_weights
from gcvideo.weights.report import Report

__all__ = [
    "Report",
    "Weights",
    "find_checkpoint",
    "load_initial_weights",
    "read_weights",
    "restore_model",
    "write_weights",
]
