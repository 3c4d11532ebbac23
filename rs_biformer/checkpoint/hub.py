"""Models in repositories of the Hugging Face hub: `hf://owner/name`, `hf://owner/name@revision`.

Of a repository model.safetensors alone is read, which holds all that prediction needs; nothing in it is executed. Who
one is on the hub, huggingface_hub knows by itself (HF_TOKEN, or its login): no token is read, shown or kept here.
"""

import logging
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from rs_biformer import __version__
from rs_biformer.errors import CheckpointError, ConfigError

FILE = "model.safetensors"
"""The file of a repository that is read."""

_NAME = re.compile(r"hf:/{1,2}([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w-][\w./-]*))?")  # a path of it has one stroke less
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")

_WHY = {
    "GatedRepositoryError": "its owner must let you in",
    "GatedRepoError": "its owner must let you in",
    "RepositoryNotFoundError": "there is no such repository, or it is not yours to see: log in with `hf auth login`",
    "RevisionNotFoundError": "it has no such revision",
    "LocalEntryNotFoundError": "the hub does not answer",
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set",
    "EntryNotFoundError": f"it has no {FILE}, which `rs-biformer push` writes",
    "RemoteEntryNotFoundError": f"it has no {FILE}, which `rs-biformer push` writes",
}


def is_hub_name(name: str | PathLike[str]) -> bool:
    """Whether a name means a repository: it begins as one, and no file is called so."""
    return str(name).startswith("hf:/") and not Path(name).exists()


def located(name: str | PathLike[str]) -> Path:
    """The file that a name means: fetched, or taken from the cache, where it is one of the hub. Raises as `fetch`."""
    return fetch(name) if is_hub_name(name) else Path(name)


def origin(name: str | PathLike[str], path: Path) -> str:
    """What a file of the hub that `fetch` found is called, with the commit it is of: hf://owner/name@commit."""
    match = _NAME.fullmatch(str(name))
    assert match is not None, "it was found by this name"
    home = path.parent  # .../snapshots/COMMIT/model.safetensors
    revision = home.name if home.parent.name == "snapshots" else match[2]
    return f"hf://{match[1]}" + (f"@{revision}" if revision else "")


def fetch(name: str | PathLike[str]) -> Path:
    """The model of a repository as a file in huggingface_hub's cache.

    Raises CheckpointError that names the file to fetch by hand where the hub cannot be reached or has none, ConfigError
    when huggingface_hub is not installed.
    """
    match = _NAME.fullmatch(str(name))
    if match is None:
        raise CheckpointError(
            f"{name} is no name of a model on the hub; write hf://owner/name or hf://owner/name@revision"
        )
    repository, revision = match.groups()
    hub = _import()
    try:
        return Path(hub.hf_hub_download(repository, FILE, revision=revision, **_SELF))
    except Exception as error:  # the library's own, those of two libraries below it, and of the network
        url = f"{hub.constants.ENDPOINT}/{repository}/resolve/{revision or 'main'}/{FILE}"
        raise CheckpointError(
            f"hf://{match[0].split('/', 1)[1].lstrip('/')} cannot be fetched: {_why(error)}. Where there is a network, "
            f"fetch {url} and give the path of the file: --checkpoint {FILE}"
        ) from None


def push(
    repository: str,
    files: Mapping[str, Path],
    *,
    message: str,
    private: bool = False,
    revision: str | None = None,
) -> str:
    """Put files into a repository in one commit, and make it if there is none; the address of the commit.

    Raises ConfigError for a name that is none, and in one line for all that the hub refuses.
    """
    if _REPOSITORY.fullmatch(repository) is None:
        raise ConfigError(f"{repository} is no name of a repository; write owner/name")
    hub = _import()
    api = hub.HfApi(**_SELF)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        added = [hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
        commit = api.create_commit(repository, operations=added, commit_message=message, revision=revision)
    except Exception as error:
        raise ConfigError(
            f"nothing was pushed to {repository}: {_why(error)}. Log in with `hf auth login` (or set HF_TOKEN) as "
            "somebody who may write there; the files can be made by export --format safetensors and put there by hand"
        ) from None
    return str(commit.commit_url)


_SELF = {"library_name": "rs_biformer", "library_version": __version__}


def _why(error: Exception) -> str:
    """In our words: a message of the library may hold what its requests held."""
    known = [_WHY[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in _WHY]
    status = getattr(getattr(error, "response", None), "status_code", None)
    if known:
        return known[0]
    return f"the hub answers {status}" if status else f"the hub does not answer ({type(error).__name__})"


def _import() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ConfigError("huggingface_hub is not installed; get it with: pip install 'rs_biformer[hub]'") from None
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # what it tries again is told in the end
    return huggingface_hub
