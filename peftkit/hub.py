"""The hub: what a repository holds, what of it is on this machine, and why something cannot be had.

Files are in the cache of huggingface_hub (`HF_HOME` or `HF_HUB_CACHE` names its place), which other tools share. With
`HF_HUB_OFFLINE=1`, or where the hub does not answer, what the cache has is used, and what it has not is one error.
"""

from __future__ import annotations

import glob
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache, cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from peftkit import console
from peftkit.errors import FieldError, InputError, UnfetchedError, first_line
from peftkit.storage import is_full

__all__ = [
    "CARD_FILES", "WEIGHTS_NAME", "Repo", "Snapshot", "cache_place", "cached_folder", "find_base", "open_snapshot",
]  # fmt: skip

CARD_FILES = ("README.md", ".huggingface.yaml", "dataset_infos.json")
"""What may say which of a data set's files belong to which configuration and split."""

WEIGHTS_NAME = "model.safetensors"
"""Of a model's weights that are one file."""

_WEIGHTS = "model*.safetensors"  # their parts too, and not `consolidated.safetensors`, which is a second copy
_OTHERS = ("*.json", "*.txt", "*.model", "*.jinja")  # configuration, tokenizer and chat template

_FIRST = {"model": ("config.json",), "dataset": CARD_FILES}
"""The small files that are looked for before the others are known."""


@dataclass(frozen=True)
class Repo:
    """A repository of the hub, as a recipe names it."""

    kind: Literal["model", "dataset"]
    name: str
    revision: str | None  # commit, tag or branch; None for the main branch
    field: str  # where the recipe names it, as `base.model`; the revision stands beside it

    def __str__(self) -> str:
        return f"{self.name} at {self.revision}" if self.revision else self.name


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit, of which some files may be on this machine."""

    repo: Repo
    folder: Path
    refusal: Exception | None  # why the hub cannot be asked for what is missing; None where it can

    @property
    def commit(self) -> str:
        """The hash of the commit."""
        return self.folder.name

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of every file of the commit; where the cache holds no list of them, of those that are there."""
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError

        try:
            tree = get_cached_repo_tree(self.repo.name, repo_type=self.repo.kind, revision=self.commit)
        except CachedRepoTreeNotFoundError:
            paths = (path for path in sorted(self.folder.rglob("*")) if path.is_file())
            return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in paths}
        places = ((PurePosixPath(file.path), file) for file in tree)
        return {file.path: file.size for at, file in places if not at.is_absolute() and ".." not in at.parts}

    def absent(self, names: Collection[str]) -> list[str]:
        """Those files that are not on this machine."""
        return [name for name in names if not (self.folder / name).is_file()]

    def bring(self, names: Collection[str]) -> None:
        """See that files are on this machine: download those that are not.

        Raises:
            UnfetchedError: the hub cannot be reached, or must not be.
            FieldError: it does not give them, or has no such file.
        """
        absent = self.absent(names)
        if not absent:
            return
        if self.refusal is not None:
            raise _fault(self.repo, self.refusal, absent)
        with _telling(self.repo):
            _download(self.repo, self.commit, absent, local=False)
        for name in self.absent(absent):
            raise FieldError(self.repo.field, f"{self.repo} has no file {name}.", remedy="Name another, or a folder.")


@cache
def open_snapshot(repo: Repo) -> Snapshot:
    """Find a repository's commit and which files it has: from the hub, or from the cache where that gives no answer.

    Raises:
        UnfetchedError: it is not on this machine, and the hub cannot be reached, or must not be.
        FieldError: the hub does not know it, or does not give it.
        InputError: the cache cannot be written.
    """
    with _telling(repo):
        refusal = _refusal(repo)
    with _telling(repo, refusal):
        folder = _download(repo, repo.revision, _FIRST[repo.kind], local=refusal is not None)
    if refusal is not None and not _is_offline(refusal):
        _warn_once(f"{_unreachable(refusal)}, so what is in its cache is used.")
    return Snapshot(repo, folder, refusal)


def find_base(repo: Repo, *, weights: bool = True) -> tuple[Snapshot, list[str]]:
    """A model at its commit, and those of its files that make a base, without fetching them.

    Weights in other forms than safetensors are not among them: some can run code when they are opened.

    Raises:
        UnfetchedError: it is not on this machine, and the hub cannot be reached, or must not be.
        FieldError: the hub does not give it.
    """
    snapshot = open_snapshot(repo)
    patterns = (*_OTHERS, _WEIGHTS) if weights else _OTHERS
    names = [name for name in snapshot.sizes if "/" not in name and any(fnmatch(name, each) for each in patterns)]
    found = any(name.endswith(".safetensors") for name in names)
    return snapshot, names if found or not weights else [*names, WEIGHTS_NAME]  # which is reported as missing


def cached_folder(repo: Repo) -> Path | None:
    """The folder of what the cache has of a repository, without asking the hub; None where that is nothing."""
    try:
        return _download(repo, repo.revision, _FIRST[repo.kind], local=True)
    except (OSError, ValueError):  # what the hub's client raises where it does not ask
        return None


def cache_place() -> Path:
    """The folder that downloaded files are kept in."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


@cache
def _silence() -> Exception | None:
    """Why the hub cannot be reached; None where it can. Its client would try again for half a minute each time."""
    from huggingface_hub import constants, get_session

    patience = constants.HF_HUB_ETAG_TIMEOUT  # the client's own, for its first word with the hub, in seconds
    try:
        get_session().head(constants.ENDPOINT, timeout=patience)
    except Exception as error:  # noqa: BLE001  the client lets the errors of its HTTP library through, which differs
        return error
    return None


def _refusal(repo: Repo) -> Exception | None:
    """Why the hub does not give a repository, which may be in the cache nevertheless; None where it does."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

    silence = _silence()
    if silence is not None:
        return silence
    try:
        HfApi().repo_info(repo.name, repo_type=repo.kind, revision=repo.revision)
    except RevisionNotFoundError:
        raise
    except HfHubHTTPError as error:
        return error
    return None


def _download(repo: Repo, revision: str | None, names: Collection[str], *, local: bool) -> Path:
    """A snapshot's folder with some files; with `local`, what the cache has of them."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.logging import set_verbosity
    from huggingface_hub.utils.tqdm import disable_progress_bars

    set_verbosity(logging.ERROR)
    if not console.stderr().is_terminal:
        disable_progress_bars()
    wanted: dict[str, Any] = {"revision": revision, "allow_patterns": [glob.escape(name) for name in names]}
    return Path(snapshot_download(repo.name, repo_type=repo.kind, local_files_only=local, **wanted))


@contextmanager
def _telling(repo: Repo, refusal: Exception | None = None) -> Iterator[None]:
    """Turn every error of the hub's client into one line; `refusal` is what the hub has said before."""
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except Exception as error:
        if is_full(error):
            raise
        if isinstance(error, OSError) and error.filename:  # of the system, and not of the client
            remedy = "Name a folder that can be written with HF_HOME."
            raise InputError(f"cannot be used: {error.strerror}.", where=error.filename, remedy=remedy) from error
        raise _fault(repo, error if isinstance(error, HFValidationError) else refusal or error) from error


@cache
def _warn_once(message: str) -> None:
    console.warning(message)


def _fault(repo: Repo, error: Exception, absent: Collection[str] = ()) -> FieldError:
    """What a user can do about an error of the hub's client."""
    from huggingface_hub import constants, errors

    kind = "data set" if repo.kind == "dataset" else "model"
    named, field = f"the {kind} {repo.name}", repo.field
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.HFValidationError):
        what = f"{repo.name!r} is no name on the hub."
        remedy = "Write it as user/name, or name a folder that is there."
    elif isinstance(error, errors.GatedRepoError):
        what = f"{named} is gated, and not open to you yet."
        page = f"{constants.ENDPOINT}/{'datasets/' if repo.kind == 'dataset' else ''}{repo.name}"
        remedy = f"Accept its licence at {page} and run `hf auth login`, or set HF_TOKEN."
    elif isinstance(error, errors.RevisionNotFoundError):
        field, what = f"{field.rpartition('.')[0]}.revision", f"{named} has no revision {repo.revision}."
        remedy = "Name a branch, a tag or a whole commit hash."
    elif isinstance(error, errors.RepositoryNotFoundError):
        what = f"the hub has no {kind} {repo.name}, or it is private."
        remedy = "Check the name; for a private one, run `hf auth login` or set HF_TOKEN."
    elif status in (401, 403):
        what = f"the hub does not open {named} to you (status {status})."
        remedy = "Run `hf auth login`, or set HF_TOKEN, with a token that may read it."
    else:
        return _unfetched(repo, error, absent)
    return FieldError(field, what, remedy=remedy)


def _unfetched(repo: Repo, refusal: Exception, absent: Collection[str]) -> UnfetchedError:
    what = f"{repo} is not {'whole ' if absent else ''}on this machine"
    for name in list(absent)[:1]:
        what += f" ({name}{f' and {len(absent) - 1} more files are' if len(absent) > 1 else ' is'} missing)"
    why = "HF_HUB_OFFLINE is set" if _is_offline(refusal) else _unreachable(refusal)
    command = f"hf download {repo.name}" + (" --repo-type dataset" if repo.kind == "dataset" else "")
    command += f" --revision {repo.revision}" if repo.revision else ""
    return UnfetchedError(repo.field, f"{what}, and {why}.", command)


def _is_offline(refusal: Exception) -> bool:
    from huggingface_hub.errors import OfflineModeIsEnabled

    return isinstance(refusal, OfflineModeIsEnabled)


def _unreachable(refusal: Exception) -> str:
    return f"the hub gives no answer ({first_line(refusal).rstrip('.')})"


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts
