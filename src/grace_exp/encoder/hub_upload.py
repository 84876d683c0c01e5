"""Upload a model to a hub."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from grace_exp.encoder.pretrained import SETTINGS_FILE, export_in
from grace_exp.encoder.pretrained_folder import save_folder

if TYPE_CHECKING:
    from grace_exp.encoder.encoder import GraceEncoder


def push(encoder: "GraceEncoder", repo_id: str, *, private: bool, token: str | None) -> str:
    """Upload an export from its folder, card included; any other model as `save_pretrained` writes it.

    Args:
        encoder: The model.
        repo_id: `owner/name`; created if it does not exist.
        private: Whether a new repository is private.
        token: Token of the hub; None: that of `hf auth login`.

    Returns:
        The address of the commit.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    path = Path(encoder.name).expanduser()
    folder = export_in(path) if path.is_dir() else path
    if (folder / SETTINGS_FILE).is_file():
        return str(api.upload_folder(repo_id=repo_id, folder_path=str(folder)))
    with tempfile.TemporaryDirectory() as name:
        save_folder(encoder, name)
        return str(api.upload_folder(repo_id=repo_id, folder_path=name))
