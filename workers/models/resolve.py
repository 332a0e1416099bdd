"""Model argument -> checkpoint directory: a path, or the id of a model on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from workers.core.errors import CheckpointError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# No pickles: they can run code when loaded.
HUB_FILES = ("*.json", "*.safetensors", "*.jinja")
# The same weights once more, in layouts that nobody here reads.
HUB_COPIES = ("original/*", "metal/*", "consolidated*")


def resolve_model(model: str) -> Path:
    """A directory that holds config.json. A hub id is downloaded once and then cached."""
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise CheckpointError(f"{path / 'config.json'} is missing")
        return path
    if path.exists():
        raise CheckpointError(f"model {model!r} is a file; a checkpoint is a directory")
    if not HUB_ID.fullmatch(model):
        raise CheckpointError(
            f"model {model!r} is neither a directory nor a Hugging Face model id (owner/name)"
        )
    return _download(model)


def _download(model: str) -> Path:
    # Imported here: a directory, the usual case, needs none of it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                model, allow_patterns=list(HUB_FILES), ignore_patterns=list(HUB_COPIES)
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"model {model!r} is not a directory here, and the Hugging Face hub did not give it: "
            f"{reason}"
        ) from error
