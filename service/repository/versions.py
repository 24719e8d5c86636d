"""Lists the models and versions in the repository, as they are at this moment.

The layout is Triton's: NAME/VERSION/model.onnx, where VERSION is a whole number without leading
zeros, and NAME/config.pbtxt may name another file. Names that begin with a dot (`.tmp-...`, for
one) are ignored. The repository may also be the folder of one model, a folder with bare ONNX
files, or one such file: FILE.onnx is version 1 of the model FILE, and FILE.json its card.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from service.core.errors import ModelLoadError, excerpt, is_used_up
from service.runtime import onnx_graph

if TYPE_CHECKING:
    from service.repository.triton_config import TritonConfig, TritonConfigs

MODEL_FILE = "model.onnx"
CARD_FILE = "model.json"
CONFIG_FILE = "config.pbtxt"
_VERSION = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)

# Names of files, each with its inode, size and modification time (ns).
Signature = tuple[int | str, ...]


class VersionOnDisk(NamedTuple):
    """A version in the repository folder.

    `file` is the model's, usually model.onnx; `files` are that one and all others that belong to
    the version, except for its `card`, which may be missing. `folder` holds them; `model_folder`
    holds what all versions of the model share. `signature` changes whenever one of the files does,
    the card, or a file of `config`.
    """

    name: str
    number: int
    folder: Path
    model_folder: Path
    file: Path
    files: tuple[Path, ...]
    card: Path
    signature: Signature
    config: TritonConfig


class OnDisk(NamedTuple):
    """What a repository holds: the versions of each model, newest first, and what cannot be served.

    `unservable` maps the name of a model and a version, or an empty string, to the reason.
    `unreadable` are the models among them whose folders are there, but cannot be listed.
    """

    models: dict[str, list[VersionOnDisk]]
    unservable: dict[tuple[str, str], str]
    unreadable: set[str]


def parse_version(text: str) -> int | None:
    """The number of a version, or None if the text is not a version's decimal name."""
    return int(text) if _VERSION.fullmatch(text) else None


def scan(root: Path, configs: TritonConfigs) -> OnDisk:
    """What the repository `root` holds.

    Raises OSError if it cannot be listed, and if descriptors or memory are used up: a part of it
    would look as if the rest had been removed.
    """
    on_disk = OnDisk({}, {}, set())
    if root.is_file():
        _add_bare(on_disk, root, configs)
        return on_disk
    entries = [entry for entry in sorted(root.iterdir()) if not entry.name.startswith(".")]
    bare = [entry for entry in entries if _is_bare(entry)]
    for file in bare:
        _add_bare(on_disk, file, configs)
    model_file = configs.of(root.absolute())[0].model_file
    if any(parse_version(entry.name) and _is_file(entry / model_file) for entry in entries):
        _add_model(on_disk, root.absolute(), configs)
        return on_disk
    for entry in entries:
        try:
            # Beside bare files, a folder may be about anything.
            if entry.is_dir() and (not bare or _is_of_a_model(entry)):
                _add_model(on_disk, entry, configs)
        except (OSError, ValueError) as error:  # one folder must not hide the others
            if is_used_up(error):
                raise
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                on_disk.unreadable.add(entry.name)
            on_disk.unservable[printable(entry.name), ""] = f"it cannot be read: {error}"
    return on_disk


def _is_of_a_model(folder: Path) -> bool:
    """Whether it holds a config.pbtxt, a model's file, or folders with the names of versions.

    Not one that cannot be listed. Raises OSError if descriptors or memory are used up. (glob()
    would say no, from Python 3.13 on.)
    """
    try:
        return any(
            entry.name in (CONFIG_FILE, MODEL_FILE)
            or (parse_version(entry.name) is not None and entry.is_dir())
            for entry in folder.iterdir()
        )
    except OSError as error:
        if is_used_up(error):
            raise
        return False


def _is_file(path: Path) -> bool:
    """Whether a path is a file; what cannot be looked at is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def printable(text: str) -> str:
    """The text, with an escape for what UTF-8 lacks: bytes of file names, and lone surrogates."""
    return text.encode(errors="backslashreplace").decode()


def only_model(root: Path) -> str:
    """The name of the model, if the repository holds one alone; else an empty string."""
    from service.repository.triton_config import TritonConfigs

    try:
        models = scan(root, TritonConfigs()).models
    except OSError:
        return ""
    return next(iter(models)) if len(models) == 1 else ""


def _add_model(on_disk: OnDisk, folder: Path, configs: TritonConfigs) -> None:
    """Add the model in a folder of its own."""
    name = folder.name
    if _has_no_name(on_disk, name):
        return
    config, config_signature = configs.of(folder)
    versions, unservable = [], {}
    for entry in folder.iterdir():
        number = parse_version(entry.name)
        file, card = entry / config.model_file, entry / CARD_FILE
        if number is None:
            if not entry.name.startswith(".") and _is_file(file):
                unservable[name, printable(entry.name)] = config.problem or (
                    "a version's folder is named by a whole number from 1, without leading zeros"
                )
            continue
        if not entry.is_dir():
            continue
        if not file.exists():
            others = sorted(each.name for each in entry.glob("*.onnx") if each.exists())
            unservable[name, entry.name] = config.problem or (
                f"it has no {config.model_file}"
                + (f", but {others[0]}; name that file in default_model_filename" if others else "")
            )
            continue
        files = tuple(each for each in _files(entry) if each not in (file, card))
        versions.append(
            VersionOnDisk(
                name=name,
                number=number,
                folder=entry,
                model_folder=folder,
                file=file,
                files=(file, *files),
                card=card,
                signature=(*_signature(entry, (file, card, *files)), *config_signature),
                config=config,
            )
        )
    if versions:
        on_disk.models[name] = sorted(versions, key=lambda v: v.number, reverse=True)
    elif not unservable:
        unservable[name, ""] = config.problem or (
            f"{MODEL_FILE} belongs into the folder of a version, {name}/1"
            if (folder / MODEL_FILE).exists()
            else f"it has no version, a folder such as {name}/1"
        )
    on_disk.unservable.update(unservable)


def _add_bare(on_disk: OnDisk, file: Path, configs: TritonConfigs) -> None:
    """Add a model that is a file on its own, with the files that hold its weights."""
    file = file.absolute()
    folder, name, number = file.parent, file.stem, 1
    (config, config_signature), model_folder = configs.nothing, folder
    version = parse_version(folder.name)
    own, own_signature = configs.of(folder.parent) if version else configs.nothing
    if version and file.name in (MODEL_FILE, own.model_file):
        name, number, model_folder = folder.parent.name, version, folder.parent
        config, config_signature = own, own_signature
    else:
        if file.name == MODEL_FILE:
            name = folder.name or name
        if (folder / CONFIG_FILE).exists():
            if _is_alone(file):
                config, config_signature = configs.of(folder, name)
            else:
                on_disk.unservable[CONFIG_FILE, ""] = (
                    "it is beside several models; give each of them a folder of its own"
                )
    if _has_no_name(on_disk, name):
        return
    card = file.with_suffix(".json")
    files = (file, *(folder / place for place in _external(file)))
    signature = (*_signature(folder, (*files, card)), *config_signature)
    on_disk.models[name] = [
        VersionOnDisk(name, number, folder, model_folder, file, files, card, signature, config)
    ]


def _is_bare(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix == ".onnx" and _is_file(path)


def _is_alone(file: Path) -> bool:
    """Whether a folder has no other bare file. Raises OSError if descriptors are used up."""
    try:
        return not any(_is_bare(path) for path in file.parent.iterdir() if path.name != file.name)
    except OSError as error:  # of a folder that cannot be listed
        if is_used_up(error):
            raise
        return True


def _has_no_name(on_disk: OnDisk, name: str) -> bool:
    """Whether no request can name this model, because its name is not UTF-8; it is added so."""
    shown = printable(name)
    if shown != name:
        on_disk.unservable[shown, ""] = "its name is not UTF-8; rename it"
    return shown != name


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder but hidden ones, where Kubernetes keeps the targets of links."""
    for place, folders, files in os.walk(folder, onerror=_raise_if_used_up):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(files) if not name.startswith("."))


def _raise_if_used_up(error: OSError) -> None:
    if is_used_up(error):
        raise error


def _signature(folder: Path, files: Sequence[Path]) -> Iterator[int | str]:
    for file in files:
        try:
            status = file.stat()
        except OSError:  # it was removed just now, or there is no card
            continue
        yield str(file.relative_to(folder)) if file.is_relative_to(folder) else str(file)
        yield from (status.st_ino, status.st_size, status.st_mtime_ns)


def _external(file: Path) -> tuple[str, ...]:
    """The places of a model's weights in other files; none for a file that cannot be read."""
    try:
        status = file.stat()
        return _external_of(file, (status.st_ino, status.st_size, status.st_mtime_ns))
    except (OSError, ValueError) as error:
        if is_used_up(error):
            raise
        return ()


@lru_cache(maxsize=1024)
def _external_of(file: Path, signature: Signature) -> tuple[str, ...]:
    return onnx_graph.read(np.memmap(file, np.uint8, "r").data).external if file.is_file() else ()


def external_weights(version: VersionOnDisk) -> tuple[str, ...]:
    """The files beside the model's that hold its weights, by their paths in the folder.

    Raises ModelLoadError if one is outside the folder.
    """
    places = _external(version.file)
    folders = (version.folder.resolve(), version.file.resolve().parent)
    for place in places:
        inside = any(
            (version.folder / place).resolve().is_relative_to(folder) for folder in folders
        )
        if Path(place).is_absolute() or ".." in Path(place).parts or not inside:
            raise ModelLoadError(
                f"{version.file.name} takes weights from '{excerpt(place)}', which is outside its "
                "folder; copy that file beside it and export the model again"
            )
    return places


def digests(version: VersionOnDisk) -> dict[str, str]:
    """SHA-256 of each file of a version, except for the card, by its path in the folder.

    Raises what `open_regular` raises.
    """
    return {
        str(file.relative_to(version.folder)): file_sha256(file) for file in sorted(version.files)
    }


def digest_of_all(digests: Mapping[str, str]) -> str:
    """SHA-256 of a version: that of its only file, or that of what sha256sum prints for all."""
    if len(digests) == 1:
        return next(iter(digests.values()))
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(os.fsencode(lines)).hexdigest()


def open_regular(path: Path) -> BufferedReader:
    """Open a file of a version for reading.

    Raises OSError, also if it is a pipe or a device: those may block, or never end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is not a regular file")
    return os.fdopen(descriptor, "rb")


def open_inside(path: Path, folder: Path, beside: Path) -> BufferedReader:
    """Open a file in `folder`; a link may lead to the place that `beside` leads to, as weights may.

    Raises OSError, also if it is no regular file, or a link leads elsewhere: answers may quote it.
    """
    file = open_regular(path)
    target = path.resolve()
    if not any(target.is_relative_to(home) for home in (folder.resolve(), beside.resolve().parent)):
        file.close()
        raise OSError(f"it is a link that leads out of {folder}; copy the file there")
    return file


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises what `open_regular` raises."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
