import os
import stat
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations
from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem, SubTreeFileSystem

from ssm_metarl.config_text import ConfigError
from ssm_metarl.runtime.storage import ArrowStorage, LocalStorage, join, open_storage, split


@pytest.fixture(params=["path", "file://", "memory://", "pyarrow"])
def storage(request, tmp_path):
    """Four storages that are not made yet."""
    if request.param == "path":
        return open_storage(tmp_path / "a b" / "run")
    if request.param == "file://":
        return open_storage((tmp_path / "a b" / "run").as_uri())
    if request.param == "memory://":
        return open_storage(f"memory://{tmp_path.name}/runs/run")
    return ArrowStorage(SubTreeFileSystem(str(tmp_path), LocalFileSystem()), "a b/run", "sub://a b/run")


def test_what_is_written_is_there(storage):
    assert storage.folders() == []
    storage.make()
    storage.make()
    assert storage.folders() == []
    storage.write("it-1/state", b"old")
    storage.write("it-1/state", bytes(range(256)))
    storage.write("it-1/manifest", b"")
    storage.write("it-2/state", b"two")
    assert sorted(storage.folders()) == ["it-1", "it-2"]
    assert sorted(storage.files("it-1")) == ["manifest", "state"]
    assert storage.read("it-1/state") == bytes(range(256))
    assert storage.read("it-1/manifest") == b""
    storage.write("config.yaml", b"seed: 1")
    assert storage.read("config.yaml") == b"seed: 1" and len(storage.folders()) == 2


def test_what_is_removed_is_gone_and_may_be_gone_before(storage):
    storage.make()
    storage.write("it-1/state", b"one")
    storage.write("it-1/manifest", b"one")
    storage.write("it-2/state", b"two")
    for _ in range(2):
        storage.remove("it-1/manifest")
        assert storage.files("it-1") == ["state"]
    for _ in range(2):
        storage.remove("it-1")
        assert storage.folders() == ["it-2"]
    assert storage.read("it-2/state") == b"two"


def test_what_is_not_there_is_an_os_error(storage):
    storage.make()
    storage.write("it-1/state", b"one")
    for call in (
        lambda: storage.read("it-1/absent"),
        lambda: storage.read("absent/x"),
        lambda: storage.files("absent"),
    ):
        with pytest.raises(OSError, match="absent"):
            call()


def test_a_path_may_be_typed(storage):
    storage.make()
    storage.write("it-1/state", b"one")
    if not isinstance(storage, ArrowStorage) or storage.where.startswith("memory"):
        assert open_storage(storage.path("it-1")).read("state") == b"one"
        assert open_storage(storage.path()).folders() == ["it-1"]
    assert storage.path("it-1").endswith("/run/it-1")


def test_opening_makes_nothing(tmp_path):
    open_storage(tmp_path / "a")
    open_storage((tmp_path / "b").as_uri())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["path", "pyarrow"])
def test_a_vanished_folder_is_not_made_again(tmp_path, kind):
    root = tmp_path / "run"
    storage = LocalStorage(root) if kind == "path" else ArrowStorage(LocalFileSystem(), str(root), root.as_uri())
    storage.make()
    root.rmdir()
    for name in ("it-1/state", "config.yaml"):
        with pytest.raises(OSError, match="run"):
            storage.write(name, b"one")
    assert not root.exists()


def test_a_name_on_disk_is_whole_or_not_there(tmp_path, monkeypatch):
    storage = LocalStorage(tmp_path)
    storage.write("it-1/state", b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        storage.write("it-1/state", b"new")
    assert storage.read("it-1/state") == b"old"


def test_file_and_folders_are_flushed_in_order(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "os.fsync", lambda descriptor: calls.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
    )
    LocalStorage(tmp_path).write("it-1/state", b"one")
    assert calls == [tmp_path.name, "state.part", "it-1"]


def test_a_file_system_that_cannot_flush_folders_is_fine(tmp_path, monkeypatch):
    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr("os.fsync", fsync)
    storage = LocalStorage(tmp_path / "run")
    storage.make()
    storage.write("it-1/state", b"one")
    assert storage.read("it-1/state") == b"one"


class WithoutFolders(MemoryFileSystem):
    """Lists files alone, as an object store may."""

    cachable = False

    def find(self, path, maxdepth=None, withdirs=False, detail=False):
        return super().find(path, maxdepth=maxdepth, withdirs=False, detail=detail)


def test_folders_are_found_where_only_files_are_listed(tmp_path):
    """A listing that looks empty would start a run anew."""
    storage = ArrowStorage(PyFileSystem(FSSpecHandler(WithoutFolders())), f"/{tmp_path.name}/run", "memory://run")
    storage.make()
    storage.write("it-1/state", b"one")
    storage.write("it-1/manifest", b"one")
    storage.write("it-2/state", b"two")
    assert storage.folders() == ["it-1", "it-2"]
    assert storage.files("it-2") == ["state"]


class Offline(MemoryFileSystem):
    """A store whose client raises what is no OSError."""

    cachable = False

    def info(self, path, **kwargs):
        raise RuntimeError("token expired")

    mkdir = makedirs = _open = rm = info


@pytest.mark.parametrize(
    "call",
    [
        lambda storage: storage.make(),
        lambda storage: storage.write("it-1/state", b""),
        lambda storage: storage.read("it-1/state"),
        lambda storage: storage.folders(),
        lambda storage: storage.files("it-1"),
        lambda storage: storage.remove("it-1"),
    ],
)
def test_whatever_a_client_raises_is_an_os_error(call):
    """Above all by ``folders``: a store that does not answer is not an empty one."""
    with pytest.raises(OSError):
        call(ArrowStorage(PyFileSystem(FSSpecHandler(Offline())), "/run", "memory://run"))


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("memroy://a/b", ["no known kind", "s3://", "did you mean memory?"]),
        ("s4://a/b", ["no known kind", "s3://"]),
        ("simplecache::memory://a", ["checkpoint.dir"]),
        ("s3://a b/c", ["cannot be opened", "Cannot parse URI"]),
        ("s3://a/b?regoin=x", ["cannot be opened", "regoin"]),
        ("file://a/b", ["cannot be opened", "hostname"]),
    ],
)
def test_a_uri_that_nothing_serves_names_the_setting(where, words):
    with pytest.raises(ConfigError) as error:
        open_storage(where)
    assert all(word in str(error.value) for word in ["checkpoint.dir", where, *words]), error.value


def test_a_missing_package_is_named(monkeypatch):
    entry = {"class": "absentfs.FileSystem", "err": "Install absentfs to access Absent"}
    monkeypatch.setitem(known_implementations, "absent", entry)
    with pytest.raises(ConfigError, match=r"checkpoint\.dir .*absent://a needs a package.* Install absentfs"):
        open_storage("absent://a")


@pytest.mark.parametrize(
    ("where", "name", "joined"),
    [
        ("s3://bucket", "run", "s3://bucket/run"),
        ("s3://bucket/runs/?region=x&scheme=http", "run", "s3://bucket/runs/run?region=x&scheme=http"),
        ("memory://", "run", "memory://run"),
        ("/runs/", "run", "/runs/run"),
        ("/runs/what?/a", "run", "/runs/what?/a/run"),
    ],
)
def test_names_join_and_split(where, name, joined):
    assert join(where, name) == joined
    root, found = split(joined)
    assert found == name and join(root, found) == joined
