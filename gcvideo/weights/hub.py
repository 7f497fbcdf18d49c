"""Hugging Face Hub: published networks, downloaded into its cache and uploaded; weights and config, never code.

A published network is a folder with ``config.yaml``, ``model.safetensors`` and ``README.md``; see ``pretrained``.
"""

import os
import sys
from pathlib import Path
from typing import Any

from gcvideo.config import flatten, is_path
from gcvideo.errors import CheckpointError, ConfigError

PREFIX = "hf:"
CONFIG, WEIGHTS, CARD = "config.yaml", "model.safetensors", "README.md"


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
