"""Files of weights: read without running code that they may hide, written, fetched from the Hugging Face Hub.

A pickle is a program. ``torch.load(weights_only=True)`` and safetensors read tensors and plain values alone; a file
that needs more (Caffe2's ``.pkl``, checkpoints that hold a toolkit's own objects) is refused, unless the caller states
that its source is trusted.

A published network is a folder with ``config.yaml``, ``model.safetensors`` and ``README.md``; see ``save_pretrained``.
The Hub downloads it into its cache: weights and config, never code.
"""

import io
import json
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from gcvideo.config import flatten, is_path
from gcvideo.errors import CheckpointError, ConfigError
from gcvideo.files import write_atomically

PREFIX = "hf:"  # of places on the Hub
CONFIG, WEIGHTS, CARD = "config.yaml", "model.safetensors", "README.md"  # of a published network

# First bytes of torch's older file format (pickled magic number); since 1.6 it writes zip archives.
_TORCH_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# Where toolkits put the weights in a checkpoint: gcvideo and torchvision's reference; PySlowFast and pytorchvideo;
# mmaction2, timm and Lightning; Caffe2.
_CONTAINERS = ("model", "model_state", "state_dict", "blobs")
# The entry of a safetensors file's metadata under which gcvideo keeps what is not a tensor.
_METADATA = "gcvideo"
# Prefixes that wrappers leave on every key: DistributedDataParallel, torch.compile.
_WRAPPERS = ("module.", "_orig_mod.")


@dataclass
class Weights:
    """Tensors of one file.

    Attributes:
        tensors: name to tensor, on the CPU, wrapper prefixes removed.
        extra: the other entries of the file (config, epoch, ...), plain values.
        path: the file.
    """

    tensors: dict[str, Tensor]
    extra: dict[str, Any] = field(default_factory=dict)
    path: str = ""


def read_weights(path: str | Path, *, unsafe_pickle: bool = False) -> Weights:
    """Weights from a ``.pt``/``.pth``/``.pyth``, ``.safetensors`` or (if trusted) ``.pkl`` file.

    Args:
        path: the file.
        unsafe_pickle: read files that may run code. Only for files whose source is trusted.

    Raises:
        CheckpointError: the file is absent, damaged, holds no tensors, or is unsafe to read.
    """
    path = Path(path).expanduser()
    content = read_file(path, unsafe_pickle=unsafe_pickle)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a state dict")
    container = next((name for name in _CONTAINERS if isinstance(content.get(name), Mapping)), None)
    named = content[container] if container else content
    named = {str(name): torch.from_numpy(x) if isinstance(x, np.ndarray) else x for name, x in named.items()}
    tensors = {name: value.detach() for name, value in named.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors; its keys are {', '.join(map(str, list(content)[:8]))}")
    for prefix in _WRAPPERS * 2:  # either order
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    extra = {str(key): value for key, value in content.items() if container and key != container}
    return Weights(tensors, extra, str(path))


def write_weights(path: str | Path, content: dict[str, Any]) -> None:
    """Write nested dicts of tensors and plain values; the ending gives the format: .safetensors, .pkl, else PyTorch's.

    ``.safetensors`` holds tensors alone; the plain values go to its metadata, as JSON. ``.pkl`` is Caffe2's: a pickled
    dict of NumPy arrays.

    Raises:
        OSError: the file cannot be written; what was there before is still there.
    """
    path = Path(path).expanduser()
    buffer = io.BytesIO()
    if path.suffix == ".safetensors":
        container = next((name for name in _CONTAINERS if name in content), None)
        tensors = content[container] if container else content
        plain = {name: value for name, value in content.items() if container and name != container}
        metadata = {_METADATA: json.dumps(plain)} if plain else None
        buffer.write(save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, metadata))
    elif path.suffix == ".pkl":
        arrays = {name: {key: tensor.numpy() for key, tensor in blobs.items()} for name, blobs in content.items()}
        pickle.dump(arrays, buffer, protocol=2)  # protocol 2: Caffe2 ran on Python 2
    else:
        torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def read_file(path: Path, *, unsafe_pickle: bool = False) -> Any:
    """The content of a file of weights or of a checkpoint, on the CPU.

    Every byte of a file of ``torch.save`` is compared with its checksums, which torch itself ignores.

    Raises:
        CheckpointError: the file is absent, damaged or unsafe to read.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, framework="pt") as stored:
                plain = json.loads((stored.metadata() or {}).get(_METADATA, "{}"))
                return {**plain, "model": {name: stored.get_tensor(name) for name in stored.keys()}}  # noqa: SIM118
        with path.open("rb") as file:
            if zipfile.is_zipfile(file):
                if damaged := zipfile.ZipFile(file).testzip():
                    raise ValueError(f"{damaged} does not match its checksum")
            elif unsafe_pickle and file.seek(0) == 0 and file.read(len(_TORCH_LEGACY)) != _TORCH_LEGACY:
                file.seek(0)
                return pickle.load(file, encoding="latin1")  # latin1: NumPy arrays pickled by Python 2
            elif file.seek(0) == 0 and file.read(1) != pickle.PROTO:
                raise ValueError("it is neither a zip file nor a pickle")
        return torch.load(path, map_location="cpu", weights_only=not unsafe_pickle)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        raise CheckpointError(
            f"{path}: not a checkpoint of tensors and plain values: it holds {refused[1] if refused else 'others'}, "
            "which is unsafe to read; if you trust its source, convert it with gcvideo convert --unsafe-pickle"
        ) from None
    except Exception as error:  # a damaged or hostile pickle can raise anything
        raise CheckpointError(
            f"{path}: not a checkpoint, or cut short ({' '.join(str(error).split())[:200]})"
        ) from None


def is_hub(place: str | Path) -> bool:
    """Whether a place is a repository of the Hub: ``hf:org/name`` or, with a revision, ``hf:org/name@v1``."""
    return str(place).startswith(PREFIX)


def fetch(place: str | Path) -> Path:
    """Folder of a published network in the local cache, downloaded if the Hub has a newer one.

    Without a network connection, what was downloaded before is taken.

    Raises:
        CheckpointError: there is no such repository or revision, or it needs a token.
        ConfigError: the package huggingface_hub is not installed.
    """
    hub = _hub()
    repository, _, revision = str(place).removeprefix(PREFIX).partition("@")
    try:
        options = {"allow_patterns": [CONFIG, WEIGHTS], "endpoint": os.environ.get("HF_ENDPOINT")}
        return Path(hub.snapshot_download(repository, revision=revision or None, **options))
    except Exception as error:  # of the Hub's package, of its HTTP client, of the file system
        raise CheckpointError(f"{place}: {' '.join(str(error).split())}") from None


def push(folder: str | Path, repository: str, *, private: bool = False) -> str:
    """Upload a folder to ``org/name``, which is made if it does not exist; returns the address of the commit.

    The token is the one of ``hf auth login``, or the environment variable HF_TOKEN.

    Raises:
        CheckpointError: the Hub refuses it.
        ConfigError: the package huggingface_hub is not installed.
    """
    hub, repository = _hub(), repository.removeprefix(PREFIX)
    api = hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload a gcvideo network"))
    except Exception as error:
        reason = f"{' '.join(str(error).split())}; the files are complete in {folder}"
        raise CheckpointError(f"--push {repository}: {reason}") from None


def refuse_code(config: dict[str, Any], where: str | Path) -> None:
    """Refuse a config that names own parts, whose code would have to run.

    Raises:
        CheckpointError: it does.
    """
    for key, value in flatten(config).items():
        if isinstance(value, str) and is_path(value) and "/" not in value:  # a place has "/", which no dotted path has
            fix = "own code, which does not go through the Hub; share the folder itself"
            raise CheckpointError(f"{where}: {key} is {value!r}, {fix}")


def _hub() -> Any:
    try:
        import huggingface_hub.utils
    except ImportError:
        raise ConfigError("the Hub needs a further package: pip install 'gcvideo[hub]'") from None
    if not sys.stderr.isatty():
        huggingface_hub.utils.disable_progress_bars()
    return huggingface_hub
