"""Folders on the Hugging Face hub."""

from __future__ import annotations

import contextlib
import logging
import re
from pathlib import Path

from llmcxr.foundation.errors import UserError

_LOG = logging.getLogger(__name__)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Never a format that could run code.
_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model", "*.md", "SHA256SUMS"]


def is_hub_id(name: str | Path, folder: Path) -> bool:
    """Whether `name`, as a path `folder`, is the id of a repository, and not a slip in a local path."""
    return isinstance(name, str) and _HUB_ID.fullmatch(name) is not None and not folder.parent.exists()


def from_hub(name: str) -> Path:
    """The repository `name` in the hub's cache, fetched where it is not there yet. `UserError` where it cannot be had."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        with contextlib.suppress(DryRunError):  # the hub is out of reach: what is in its cache is taken
            files = snapshot_download(name, allow_patterns=_FILES, dry_run=True)
            if missing := sum(file.file_size or 0 for file in files if file.will_download):
                _LOG.info(f"Fetching {name} from the Hugging Face hub, once: {missing / 1e6:,.0f} MB ...")
        return Path(snapshot_download(name, allow_patterns=_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:  # the last: no name of the hub's
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name!r} is no folder here, and could not be fetched from the Hugging Face hub: {reason} Check the name, or "
            "connect once; afterwards it works offline."
        ) from error


def to_hub(folder: Path, name: str, private: bool) -> str:
    """Put the files of `folder` into the repository `name` (OWNER/NAME; made where it is not there), in one commit; its
    address. `UserError` where the hub does not take them."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=_FILES))
    except (HfHubHTTPError, OSError, ValueError) as error:  # the last: no name of the hub's
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name!r} could not be written to the Hugging Face hub: {reason} Check the name, log in (`hf auth login`), or connect."
        ) from error
