"""An adapter or a model to the hub, without anything that belongs to the machine it was made on."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePath

from peftkit import console
from peftkit.adapters.card import without_folders
from peftkit.adapters.files import CONFIG_NAME, RECEIPT_NAME, RECORD_NAME, TOKENIZER_FILES, Adapter
from peftkit.adapters.proof import SAMPLE_NAME
from peftkit.adapters.target import Target, find_target
from peftkit.errors import InputError, RunError, TargetError, first_line
from peftkit.runs.folder import CARD_NAME
from peftkit.storage import atomic_folder, manifest_faults, read_json, write_json, write_text

__all__ = ["TOKEN_VARIABLE", "Push", "push"]

TOKEN_VARIABLE = "HF_TOKEN"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_WANTED = (*_WEIGHTS, "config.json", "generation_config.json", CARD_NAME, *TOKENIZER_FILES)
_TOLD = (CONFIG_NAME, RECORD_NAME, RECEIPT_NAME)
"""JSON files in which a folder of this machine may be named."""


@dataclass(frozen=True)
class Push:
    """What goes, or has gone, to the hub."""

    repo: str
    private: bool
    files: dict[str, int]
    """Bytes of each file."""

    left_out: list[str]
    """Files of the target that stay here."""

    card: str
    url: str | None
    """None where it was only tried."""


def push(name: str, repo: str, *, public: bool = False, with_sample: bool = False, dry_run: bool = False) -> Push:
    """Upload a target to a hub repository, which is made, private unless `public`, if it is not there.

    The token is taken from the environment and nowhere else. Names of folders on this machine are cut to their last
    part; the sample of the run's data stays here unless it is asked for.

    Raises:
        InputError: the target is not sound, the repository's name is none, or there is no token.
        RunError: the hub refused.
    """
    _check_name(repo)
    target = find_target(name)
    _check_target(target)
    with tempfile.TemporaryDirectory() as work:
        stage = Path(work, "stage")
        with atomic_folder(stage) as folder:
            _fill(folder, Path(target.folder), repo, with_sample)
        files = {path.name: path.stat().st_size for path in sorted(stage.iterdir())}
        card = (stage / CARD_NAME).read_text(encoding="utf-8") if (stage / CARD_NAME).is_file() else ""
        left_out = sorted({path.name for path in Path(target.folder).iterdir()} - set(files))
        url = None if dry_run else _upload(stage, repo, public)
    return Push(repo, not public, files, left_out, card, url)


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError("is no name of a repository.", where=repo, remedy="Write it as user/name.") from error


def _check_target(target: Target) -> None:
    folder = Path(target.folder)
    if not folder.is_dir():
        raise TargetError("is no folder on this machine.", where=target.folder, remedy="Name a run or what it made.")
    if target.kind == "adapter":
        adapter = Adapter.read(folder)
        adapter.check_sound()
        if PurePath(str(adapter.config.get("base_model_name_or_path"))).is_absolute():
            console.warning("its base is a folder on this machine, which nobody else can open by its name.")
    faults = manifest_faults(folder, editable=(CARD_NAME,))
    if faults:
        what = f"is not what was written: {faults[0]}."
        raise TargetError(what, where=target.folder, remedy="Export or merge again.")
    if (folder / RECEIPT_NAME).is_file() and read_json(folder / RECEIPT_NAME)["proof"] is None:
        console.warning("it was merged without the comparison with its adapter.")


def _fill(stage: Path, folder: Path, repo: str, with_sample: bool) -> None:
    wanted = (*_WANTED, SAMPLE_NAME) if with_sample else _WANTED
    for source in sorted({path for pattern in wanted for path in folder.glob(pattern) if path.is_file()}):
        shutil.copyfile(source, stage / source.name)
    for name in _TOLD:
        if (folder / name).is_file():
            write_json(stage / name, without_folders(read_json(folder / name)))
    if (stage / CARD_NAME).is_file():
        card = (stage / CARD_NAME).read_text(encoding="utf-8")
        write_text(stage / CARD_NAME, card.replace('"FOLDER"', f'"{repo}"'))


def _upload(stage: Path, repo: str, public: bool) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    token = os.environ.get(TOKEN_VARIABLE)
    if not token:
        raise InputError("is not set.", where=TOKEN_VARIABLE, remedy="Put a token that may write into the environment.")
    disable_progress_bars()
    api = HfApi(token=token)
    try:
        url = api.create_repo(repo, private=not public, exist_ok=True)
        if not public and not api.repo_info(url.repo_id).private:
            raise InputError("is there already, and public.", where=repo, remedy="Say --public if that is right.")
        api.upload_folder(repo_id=url.repo_id, folder_path=stage, commit_message="Upload with peftkit")
    except InputError:
        raise
    except Exception as error:  # the client lets the errors of its HTTP library through, which differs by its version
        what = f"the hub cannot be written to: {first_line(error)}"
        raise RunError(what, where=repo, remedy="Check token and network.") from error
    return str(url)
