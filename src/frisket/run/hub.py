"""`frisket export --push user/name`: the only thing in frisket that sends anything, and only what it has just shown."""

import os
import re
from pathlib import Path

from frisket.errors import ConfigError
from frisket.run.gguf import FOLDER, find_converter
from frisket.watch import Watcher

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(path: str) -> bool:
    """Whether a model's path names a repository of the Hub and not a folder."""
    return bool(_REPOSITORY.fullmatch(path)) and not Path(path).exists()


def refuse_to_push(repository: str, to: str) -> None:
    """Check what can be checked before anything is computed.

    Raises:
        ConfigError: the name is no ``user/name``, this machine is told to stay offline, there is no token, or no GGUF
            file can be made here.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise ConfigError(
            f"--push {repository}: must be a repository of the Hugging Face Hub.\nWrite: --push user/name"
        )
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        raise ConfigError("--push: HF_HUB_OFFLINE is set, so nothing may be sent.\nUnset it: unset HF_HUB_OFFLINE")
    from huggingface_hub import get_token

    if get_token() is None:
        raise ConfigError("--push: there is no token for the Hugging Face Hub.\nLog in with: hf auth login")
    if to in ("gguf", "ollama") and find_converter() is None:
        raise ConfigError(
            f"--push with --to {to}: there would be no weights to send, because llama.cpp's converter is not "
            f"installed here.\nName its folder in {FOLDER}, or push the model: --to merged"
        )


def push(folder: Path, repository: str, watcher: Watcher) -> str:
    """Send a folder, after listing what is in it; a new repository is private.

    Returns:
        The repository's address.

    Raises:
        ConfigError: the Hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    watcher.say(f"push       {len(files)} files to {repository} (a new repository is made private):")
    for path in files:
        watcher.say(f"           {path.relative_to(folder)}  {path.stat().st_size:,} bytes")
    hub = HfApi()
    try:
        address = hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=[str(path.relative_to(folder)) for path in files],
            commit_message="Exported with frisket",
        )
    except Exception as error:  # which HTTP library raises it changes with the version of huggingface_hub
        said = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"--push {repository}: the Hub refused or could not be reached: {said}\n"
            f"What was written stays in {folder}; try again with: hf upload {repository} {folder} ."
        ) from error
    return str(address)
