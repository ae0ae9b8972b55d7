"""Where checkpoints lie: a folder on a disk, or a prefix in an object store, behind the same seven operations."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ssm_metarl.config_text import ConfigError, did_you_mean


class Storage(Protocol):
    """A folder of folders of files. Names are relative: ``folder/file``, or ``file``. Every operation raises OSError.

    ``where`` and ``path(name)`` are what a user may type: a path, or a URI.
    """

    def make(self) -> None:
        """Makes the storage's own folder; once, when a run starts."""

    def write(self, name: str, data: bytes) -> None:
        """Writes a whole file, and its folder; but not the storage's own, should that have vanished."""

    def read(self, name: str) -> bytes: ...

    def folders(self) -> list[str]:
        """Names of the folders; none if the storage itself is not there yet."""

    def files(self, folder: str) -> list[str]:
        """Names of the files in a folder; in the storage itself for ``""``, none if that is not there yet."""

    def remove(self, name: str) -> None:
        """Removes a file, or a folder with all that is in it; nothing there is fine."""

    def path(self, name: str = "") -> str: ...


@dataclass(frozen=True)
class LocalStorage:
    """A folder on a disk. What ``write`` wrote outlives a power cut, and has its name only when it is whole."""

    root: Path

    def make(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        _flush_folder(self.root.parent)

    def write(self, name: str, data: bytes) -> None:
        path = self.root / name
        if path.parent != self.root:
            with contextlib.suppress(FileExistsError):
                path.parent.mkdir()
                _flush_folder(self.root)
        part = path.with_name(f"{path.name}.part")
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _flush_folder(path.parent)

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def folders(self) -> list[str]:
        try:
            return [path.name for path in self.root.iterdir() if path.is_dir()]
        except FileNotFoundError:
            return []

    def files(self, folder: str) -> list[str]:
        if not folder and not self.root.exists():
            return []
        return [path.name for path in (self.root / folder).iterdir() if path.is_file()]

    def remove(self, name: str) -> None:
        path = self.root / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def path(self, name: str = "") -> str:
        return str(self.root / name)


def _flush_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Network file systems that cannot do this say so; a full or broken disk says something else.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """A store's client raises what it likes, and a run of days must not end by the name of an exception."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class ArrowStorage:
    """A folder of any ``pyarrow.fs.FileSystem``; ``where`` is the URI that it was opened by."""

    system: Any
    root: str
    where: str

    @_as_os_error()
    def make(self) -> None:
        self.system.create_dir(self.root, recursive=True)

    @_as_os_error()
    def write(self, name: str, data: bytes) -> None:
        if "/" in name:
            self.system.create_dir(self._at(name.rpartition("/")[0]), recursive=False)
        with self.system.open_output_stream(self._at(name)) as file:
            file.write(data)

    @_as_os_error()
    def read(self, name: str) -> bytes:
        with self.system.open_input_file(self._at(name)) as file:
            return file.read()

    @_as_os_error()
    def folders(self) -> list[str]:
        # Asked for by name first: fsspec's listing takes any error, of the network too, for a folder that is not there.
        if self._type(self.root) == "NotFound":
            return []
        # All files, and their folders from their paths: not every object store lists folders that nobody made.
        names = [name for name, kind in self._list(self.root, recursive=True) if "/" in name or kind == "Directory"]
        return sorted({name.partition("/")[0] for name in names})

    @_as_os_error()
    def files(self, folder: str) -> list[str]:
        if not folder and self._type(self.root) == "NotFound":
            return []
        return [name for name, kind in self._list(self._at(folder), recursive=False) if kind == "File"]

    @_as_os_error()
    def remove(self, name: str) -> None:
        kind = self._type(self._at(name))
        if kind == "Directory":
            self.system.delete_dir(self._at(name))
        elif kind != "NotFound":
            self.system.delete_file(self._at(name))

    def path(self, name: str = "") -> str:
        return join(self.where, name) if name else self.where

    def _at(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}" if name else self.root

    def _type(self, path: str) -> str:
        return self.system.get_file_info(path).type.name

    def _list(self, path: str, recursive: bool) -> list[tuple[str, str]]:
        """What is under ``path``: relative names, and kinds."""
        from pyarrow.fs import FileSelector

        infos = self.system.get_file_info(FileSelector(path, recursive=recursive))
        return [(info.path.strip("/").removeprefix(f"{path.strip('/')}/"), info.type.name) for info in infos]


_URI = re.compile(r"([\w+.:-]+)://")


def is_uri(where: str | Path) -> bool:
    """Whether it is a URI, and not a path."""
    return isinstance(where, str) and _URI.match(where) is not None


def open_storage(where: str | Path, setting: str = "checkpoint.dir (or --resume)") -> Storage:
    """The storage at a path or a URI: ``file://``, one of pyarrow (``s3://``, ``gs://``) or of fsspec. Makes nothing.

    ``setting``: what an error calls the place.

    Raises:
        ConfigError: nothing serves such a URI, a Python package for it is missing, or the store does not answer.
    """
    uri = _URI.match(where) if isinstance(where, str) else None
    if uri is None:
        return LocalStorage(Path(where))
    setting = f"{setting} = {where}"
    try:
        system, root = _open_system(uri[1], where)
    except ConfigError as error:
        raise ConfigError(f"{setting} {error}") from error
    except ImportError as error:
        raise ConfigError(f"{setting} needs a package that pip has not installed here: {error}") from error
    except Exception as error:
        raise ConfigError(f"{setting} cannot be opened: {error}") from error
    # Of a disk pyarrow neither flushes files nor gives them their names when they are whole.
    return LocalStorage(Path(root)) if uri[1] == "file" else ArrowStorage(system, root, where)


def _open_system(scheme: str, where: str) -> tuple[Any, str]:
    import fsspec
    import pyarrow
    from pyarrow import fs

    try:
        return fs.FileSystem.from_uri(where)
    except pyarrow.ArrowInvalid as error:
        # For a scheme that pyarrow does know, fsspec would only say that yet another package is missing.
        if not str(error).startswith("Unrecognized filesystem type"):
            raise
    if scheme not in (known := fsspec.available_protocols()):
        near = did_you_mean(scheme, known)
        raise ConfigError(f"is of no known kind: give a folder, s3://, gs://, abfs://, hdfs:// or one of fsspec{near}")
    system, root = fsspec.core.url_to_fs(where)
    return fs.PyFileSystem(fs.FSSpecHandler(system)), root


def join(where: str, name: str) -> str:
    """The path or URI of ``name`` in the folder ``where``; the query of a URI stays last."""
    if not _URI.match(where):
        return str(Path(where, name))
    base, mark, query = where.partition("?")
    return f"{base}{'' if base.endswith('/') else '/'}{name}{mark}{query}"


def split(where: str | Path) -> tuple[str, str]:
    """The folder that holds ``where``, and the name in it: what ``join`` joins."""
    if isinstance(where, Path) or not _URI.match(where):
        path = Path(os.path.abspath(where))
        return str(path.parent), path.name
    base, mark, query = where.partition("?")
    root, _, name = base.rstrip("/").rpartition("/")
    return f"{root}/{mark}{query}", name
