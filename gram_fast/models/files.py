"""Which files a checkpoint is: what its name stands for, and which of its files hold its weights.

Two sets of weights in one folder are refused, not chosen from: nothing in them says which one is meant.
"""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file
from transformers.utils.hub import has_file

from gram_fast.errors import InputError, one_line
from gram_fast.hub import hub_problem

log = logging.getLogger(__name__)

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_WEIGHTS = (_SINGLE, _INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


# Name of the judge that ships with the package, where there is no folder of that name.
_SMALL, _SMALL_FOLDER = "small", Path(__file__).parents[1] / "small_judge"


@dataclass(frozen=True)
class Source:
    """What the name of a checkpoint stands for: whole weights, an adapter on those of its base, or a GGUF file."""

    name: str
    """Folder, or name on the hub, that has the configuration and the whole weights."""
    hub: dict[str, Any]
    """Keyword arguments of transformers' loading functions for `name`: revision, token, trust_remote_code, and
    local_files_only where the hub cannot be reached."""
    adapter: str | None = None
    """Folder, or name on the hub, of the adapter."""
    gguf: Path | None = None
    """A GGUF file in the folder `name` that holds configuration, tokenizer and weights."""

    @property
    def where(self) -> str:
        """The checkpoint of whole weights, for messages: `name`, or the path of the GGUF file."""
        return self.name if self.gguf is None else str(self.gguf)

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of transformers' loading functions beside the name."""
        return self.hub if self.gguf is None else {**self.hub, "gguf_file": self.gguf.name}


def find_source(name: str, **hub: Any) -> Source:
    """Finds what a checkpoint's name stands for; `hub`: revision, token and trust_remote_code as in transformers.

    Where the hub cannot be reached, what its cache holds is used, with a warning unless HF_HUB_OFFLINE is set. Raises
    InputError for a path to nothing, for a name that is neither a folder nor on the hub, and for an adapter beside
    whole weights: it may be merged into them or not.
    """
    name = _expanded(name)
    if os.path.isfile(name):
        return _gguf_source(Path(name), hub)
    if name.startswith((".", "/")) and not os.path.isdir(name):
        raise InputError(f"there is no checkpoint folder {name!r}")
    base_hub = hub
    if problem := _problem(name):
        hub = {**hub, "local_files_only": True}
        cached = find_file(name, "config.json", **hub) or find_file(name, _ADAPTER_CONFIG, **hub)
        if cached is None:
            raise InputError(f"{_no_folder(name)}, and the Hugging Face hub cannot be reached ({problem})")
        if not is_offline_mode():
            _warn_of_cache(name, cached.parent.name, problem)
    adapter_config = find_file(name, _ADAPTER_CONFIG, **hub)
    if adapter_config is None and not os.path.isdir(name):
        return Source(name, hub)
    weights, adapter = _held(name, _WEIGHTS, hub), _held(name, _ADAPTER_WEIGHTS, hub)
    if weights and (adapter_config or adapter):
        beside = _ADAPTER_CONFIG if adapter_config else adapter[0]
        raise InputError(
            f"{name!r} holds {weights[0]} and {beside}: move the adapter away where it is merged into the weights, "
            "or into a folder of its own where it is not"
        )
    if adapter_config is None:
        return Source(name, hub)
    if not adapter:
        raise InputError(f"{name!r} holds {_ADAPTER_CONFIG} without {_ADAPTER_WEIGHTS[0]}")
    return _base_of(name, adapter_config, base_hub)


def _expanded(name: str) -> str:
    """A name with ~ for a home folder written out, and with the path of the small judge for its name."""
    name = os.path.expanduser(name)
    return str(_SMALL_FOLDER) if name == _SMALL and not os.path.exists(name) else name


def _problem(name: str) -> str | None:
    """Why the hub, on which a name is, cannot be reached; None where it can, and for a folder."""
    return None if os.path.isdir(name) else hub_problem(name)


def _is_local(name: str, hub: dict[str, Any]) -> bool:
    """Whether only what the hub's cache holds can be found; where it was so for a Source, so it is for its files."""
    return hub.get("local_files_only", False) or _problem(name) is not None


@cache  # a load asks several times
def _warn_of_cache(name: str, commit: str, problem: str) -> None:
    log.warning(
        "%s is loaded from the cache, commit %s, which may be an old one: the Hugging Face hub cannot be reached (%s)",
        name,
        commit,
        problem,
    )


def _no_folder(name: str) -> str:
    return f"cannot load {name!r}: there is no such folder"


def _gguf_source(path: Path, hub: dict[str, Any]) -> Source:
    if path.suffix != ".gguf":
        raise InputError(f"expected a checkpoint folder or a .gguf file, {str(path)!r} is another file")
    if (path.parent / _ADAPTER_CONFIG).exists():
        raise InputError(f"{str(path)!r} and {_ADAPTER_CONFIG} are in one folder: expected them apart")
    return Source(str(path.parent), hub, gguf=path)


def _base_of(name: str, adapter_config: Path, hub: dict[str, Any]) -> Source:
    values = read_object(adapter_config)
    base, revision = values.get("base_model_name_or_path"), values.get("revision")
    if not isinstance(base, str) or not base or not isinstance(revision, str | None):
        raise InputError(f"{str(adapter_config)!r} names no base: expected a 'base_model_name_or_path'")
    try:
        source = find_source(base, **{**hub, "revision": revision})
    except InputError as error:
        raise InputError(f"adapter {name!r}: its base: {error}") from error
    if source.adapter is not None or source.gguf is not None:
        found = "a GGUF file" if source.gguf is not None else "an adapter"
        raise InputError(f"adapter {name!r}: its base {base!r} is {found}, expected a checkpoint of whole weights")
    return Source(source.name, source.hub, adapter=name)


def read_object(path: Path) -> dict[str, Any]:
    """Reads a file with one JSON object. Raises InputError for anything else."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot load {str(path)!r}: it is no JSON: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise InputError(f"cannot load {str(path)!r}: expected a JSON object, got a {type(value).__name__}")
    return value


def find_files(name: str, **hub: Any) -> list[Path]:
    """The safetensors files of a checkpoint: one, those of its index, or none where it has other files.

    `name`: a folder, or a name on the hub; `hub`: revision and token as in transformers. Raises InputError for a broken
    index, a missing file, and a single file beside the files of an index.
    """
    name = _expanded(name)
    single, index = find_file(name, _SINGLE, **hub), find_file(name, _INDEX, **hub)
    if index is None:
        return [single] if single else []
    shards = _shards(index)
    if single is None:
        return [_shard(name, shard, **hub) for shard in shards]
    if there := _held(name, [shard for shard in shards if shard != _SINGLE], hub):
        raise InputError(
            f"{name!r} holds {_SINGLE} and {there[0]} of {_INDEX}, two sets of weights: expected one of the two"
        )
    return [single]


def _shards(index: Path) -> list[str]:
    """Names of the files of an index, each inside the folder."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"cannot load {str(index)!r}: expected a 'weight_map' from weights to files")
    shards = set()
    for shard in weight_map.values():
        if not isinstance(shard, str) or PurePosixPath(shard).is_absolute() or ".." in PurePosixPath(shard).parts:
            raise InputError(f"cannot load {str(index)!r}: expected names of files beside it, got {shard!r}")
        shards.add(shard)
    return sorted(shards)


def _shard(name: str, shard: str, **hub: Any) -> Path:
    path = find_file(name, shard, **hub)
    if path is None:
        raise InputError(f"cannot load weights from {name!r}: there is no file {shard!r}, which {_INDEX} names")
    return path


@contextmanager
def opened(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """The tensors of safetensors files by name, as slices, which read nothing until they are indexed.

    Raises InputError for a broken file, and for a tensor that is in two files.
    """
    tensors: dict[str, Any] = {}
    place: dict[str, Path] = {}
    with ExitStack() as stack:
        for file in files:
            try:
                shard = stack.enter_context(safe_open(file, framework="pt", device="cpu"))
                of_file = {key: shard.get_slice(key) for key in shard.keys()}  # noqa: SIM118 - no mapping
            except (SafetensorError, OSError) as error:
                raise InputError(f"cannot load weights from {str(file)!r}: {one_line(error)}") from error
            if twice := sorted(of_file.keys() & tensors.keys()):
                first = twice[0]
                raise InputError(f"{first!r} is in two files, {str(place[first])!r} and {str(file)!r}")
            tensors |= of_file
            place |= dict.fromkeys(of_file, file)
        yield tensors


def _held(name: str, files: Sequence[str], hub: dict[str, Any]) -> list[str]:
    """Those of the files that the checkpoint has."""
    options = {"revision": hub.get("revision"), "token": hub.get("token"), "local_files_only": _is_local(name, hub)}
    return [file for file in files if has_file(name, file, **options)]


def find_file(name: str, file: str, **hub: Any) -> Path | None:
    """A file of a checkpoint, if it has one of that name; `name`: a folder, or a name on the hub.

    `hub`: revision and token as in transformers. Raises InputError for a name of neither.
    """
    try:
        found = cached_file(
            name,
            file,
            revision=hub.get("revision"),
            token=hub.get("token"),
            local_files_only=_is_local(name, hub),
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError) as error:
        if isinstance(error.__cause__, RepositoryNotFoundError):
            raise InputError(f"{_no_folder(name)}, nor a model on the Hugging Face hub that you may read") from error
        if isinstance(error.__cause__, HFValidationError):
            raise InputError(f"{_no_folder(name)}, and names on the Hugging Face hub are org/name") from error
        raise InputError(f"cannot load {file} of {name!r}: {one_line(error)}") from error
    return Path(found) if found else None
