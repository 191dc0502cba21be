"""Files of the Hugging Face hub, for `hf-hub:org/name` or `hf-hub:org/name@revision`.

Nothing is downloaded unless that is allowed in so many words. The revision is resolved to a commit
first, files are fetched at that commit, and each is held against the checksum that the hub lists
for it there. Only data are fetched: an .onnx or .safetensors file and its config.json.
"""

import hashlib
import importlib.util
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fvaudit.models.imports.metadata import parsed_json
from fvaudit.models.imports.pickle_ops import shown
from fvaudit.records import AuditError


PREFIX = "hf-hub:"
MAX_BYTES = 4 * 2**30  # of a model file
MAX_CONFIG_BYTES = 2**20
FILES = ("model.onnx", "onnx/model.onnx", "model.safetensors")  # the first that is there
CONFIGS = ("config.json", "preprocessor_config.json")
_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


class Fetched(NamedTuple):
    """What a repository of the hub holds of a model."""

    path: pathlib.Path  # of the .onnx or .safetensors file
    configs: Mapping[str, Mapping]  # content of `CONFIGS` by name, those that are there
    source: str  # repository, commit, checksum, for people


class _File(NamedTuple):
    name: str
    size: int
    sha256: str | None  # of files in large-file storage
    blob: str | None  # Git's own SHA-1


def fetch(name: str, *, allow_download: bool) -> Fetched:
    """Downloads a model's files, or takes them from the hub's cache, and checks them.

    Args:
        name: "hf-hub:org/name", with "@revision" or without.
        allow_download: whether the network may be used.

    Raises:
        AuditError: if that is not allowed, the extra `hub` is missing, the name is malformed, the
            repository cannot be reached or holds no model, or a file is too large or has another
            checksum than the hub lists.
    """
    match = _ID.fullmatch(name.removeprefix(PREFIX))
    if match is None:
        raise AuditError(f"{shown(name)} is malformed; expected {PREFIX}org/name or ...@revision.")
    if not allow_download:
        raise AuditError(
            f"{name} would be downloaded, which has to be allowed: --allow-download on the command "
            "line, allow_download=True in Python."
        )
    if importlib.util.find_spec("huggingface_hub") is None:
        raise AuditError(f"{name} needs the hub's client. Run: pip install 'fvaudit[hub]'")
    commit, files = _listed(match[1], match[2])
    chosen = _chosen(files, name)
    path = _downloaded(match[1], commit, chosen, MAX_BYTES)
    configs = {
        c: parsed_json(_downloaded(match[1], commit, files[c], MAX_CONFIG_BYTES).read_text(), c)
        for c in CONFIGS
        if c in files
    }
    digest = _digests(path)[0]
    source = f"{PREFIX}{match[1]}@{commit}, {chosen.name}, SHA-256 {digest}"
    return Fetched(path, configs, source)


def _listed(repository: str, revision: str | None) -> tuple[str, dict[str, _File]]:
    """(commit, files by name) of a revision; the default branch's head if None."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    except Exception as error:  # of the network, the client, the repository
        raise _unreachable(repository, error) from None
    commit = info.sha or ""
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise AuditError(f"The hub names no commit for {repository}; try again later.")
    siblings: Sequence[Any] = info.siblings or ()
    files = {
        s.rfilename: _File(s.rfilename, s.size or 0, s.lfs.sha256 if s.lfs else None, s.blob_id)
        for s in siblings
    }
    return commit, files


def _chosen(files: Mapping[str, _File], name: str) -> _File:
    found = next((files[file] for file in FILES if file in files), None)
    if found is None:
        raise AuditError(f"{name} holds none of {', '.join(FILES)}; nothing else is loaded.")
    return found


def _downloaded(repository: str, commit: str, file: _File, max_bytes: int) -> pathlib.Path:
    from huggingface_hub import hf_hub_download

    if not 0 < file.size <= max_bytes:
        raise AuditError(f"{file.name} of {repository} has {file.size} bytes; at most {max_bytes}.")
    try:
        path = pathlib.Path(hf_hub_download(repository, file.name, revision=commit))
    except Exception as error:  # of the network, the client, the disk
        raise _unreachable(repository, error) from None
    sha256, blob = _digests(path)
    if (sha256 != file.sha256) if file.sha256 else (blob != file.blob):
        raise AuditError(
            f"{file.name} of {repository} is not the file that the hub lists for commit {commit}: "
            f"its checksum differs. Remove {path} and load it again."
        )
    return path


def _unreachable(repository: str, error: Exception) -> AuditError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return AuditError(f"{repository} cannot be had from the hub: {shown(lines[0])}")


def _digests(path: str | os.PathLike) -> tuple[str, str]:
    """(SHA-256, Git's blob id) of a file."""
    size = pathlib.Path(path).stat().st_size
    sha256, blob = hashlib.sha256(), hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(2**20):
            sha256.update(block)
            blob.update(block)
    return sha256.hexdigest(), blob.hexdigest()
