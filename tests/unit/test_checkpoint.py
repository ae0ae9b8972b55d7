import hashlib
import json
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
from damage import POINTS, damage, save_and_die
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from ssm_metarl.runtime import checkpoint
from ssm_metarl.runtime.checkpoint import MANIFEST, STATE, CheckpointError, TrainState
from ssm_metarl.runtime.storage import LocalStorage, open_storage


def make_state(iteration):
    arrays = {"params_P": np.arange(400, dtype=np.float32) + iteration, "step": np.float32(iteration)}
    return TrainState(iteration, 100 * iteration, arrays)


def save(storage, iteration, keep=9, warn=pytest.fail):
    return checkpoint.save(storage, make_state(iteration), {"seed": 3}, keep, warn)


def newest(storage, warn=pytest.fail):
    """The iteration of the newest checkpoint, after a look at all of its content."""
    state, identity = checkpoint.load_newest(storage, warn)
    np.testing.assert_equal(vars(state), vars(make_state(state.iteration)))
    assert identity == {"seed": 3}
    return state.iteration


def iterations(storage):
    return sorted(int(name[3:11]) for name in storage.folders())


@pytest.fixture
def disk(tmp_path):
    storage = LocalStorage(tmp_path / "checkpoints")
    storage.make()
    return storage


@pytest.fixture(params=["disk", "memory"])
def storage(request, disk, tmp_path):
    if request.param == "disk":
        return disk
    storage = open_storage(f"memory://{tmp_path.name}")
    storage.make()
    return storage


# The round trip

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
trees = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)
dtypes = st_numpy.floating_dtypes() | st_numpy.integer_dtypes() | st_numpy.boolean_dtypes()
arrays = st_numpy.arrays(dtypes, st_numpy.array_shapes(min_dims=0, min_side=0, max_side=4))
names = st.from_regex(r"(params|exp_avg|exp_avg_sq)_[A-Za-z0-9_.]{1,30}", fullmatch=True)


@settings(deadline=None)
@given(st.dictionaries(names, arrays, max_size=4), st.dictionaries(st.text(), trees, max_size=4), st.integers(0, 10**8))
def test_what_is_loaded_is_what_was_saved(tmp_path_factory, arrays, identity, iteration):
    storage = LocalStorage(tmp_path_factory.mktemp("checkpoints"))
    path = checkpoint.save(storage, TrainState(iteration, 10**12, arrays), identity, 1, pytest.fail)
    state, found = checkpoint.load(path)
    assert (state.iteration, state.num_env_steps, found) == (iteration, 10**12, identity)
    assert state.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        assert state.arrays[name].dtype == array.dtype and state.arrays[name].shape == array.shape
        assert state.arrays[name].tobytes() == array.tobytes()


def test_every_form_of_a_path_loads(disk, monkeypatch):
    path = Path(save(disk, 3))
    monkeypatch.chdir(disk.root)
    for where in (path, str(path), f"{path}/", path.as_uri(), path.name, f"./{path.name}"):
        assert checkpoint.load(where)[0].iteration == 3, where
    monkeypatch.chdir(path)
    assert checkpoint.load(".")[0].iteration == 3


def test_a_uri_loads(storage):
    assert checkpoint.load(save(storage, 3))[0].iteration == 3


def test_the_manifest_says_what_the_numbers_depend_on(disk):
    manifest = json.loads((Path(save(disk, 3)) / MANIFEST).read_text())
    assert {"format", "identity", "files", "versions", "sha256"} < manifest.keys()
    assert {"python", "machine", "torch", "numpy", "mujoco"} < manifest["versions"].keys()


def test_nothing_to_load(tmp_path):
    assert checkpoint.load_newest(open_storage(tmp_path / "absent"), pytest.fail) is None
    assert checkpoint.load_newest(open_storage("memory://absent"), pytest.fail) is None


def test_other_versions_are_told(tmp_path, monkeypatch):
    storage, now = LocalStorage(tmp_path), checkpoint.versions()
    monkeypatch.setattr(checkpoint, "versions", lambda: {**now, "torch": "1.0"})
    save(storage, 1)
    monkeypatch.undo()
    warnings = []
    assert newest(storage, warnings.append) == 1
    [warning] = warnings
    assert f"was saved with torch 1.0 (now {now['torch']}): what follows is not the same bit for bit" in warning


def test_nothing_but_damaged_checkpoints_is_told(tmp_path):
    storage = LocalStorage(tmp_path)
    for path in [Path(save(storage, iteration)) for iteration in (1, 2)]:
        (path / MANIFEST).unlink()
    warnings = []
    assert checkpoint.load_newest(storage, warnings.append) is None
    assert len(warnings) == 3 and "none of the 2 checkpoints in" in warnings[2]
    assert "starting from the beginning" in warnings[2]
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(tmp_path / "absent")


# What stays


@pytest.mark.parametrize("keep", [1, 2, 3, 9])
def test_the_newest_stay(storage, keep):
    for iteration in range(1, 6):
        save(storage, iteration, keep)
    assert iterations(storage) == [1, 2, 3, 4, 5][-keep:]
    assert newest(storage) == 5


def test_checkpoints_of_a_future_that_is_written_again_go(storage):
    for iteration in (1, 2, 10):
        save(storage, iteration)
    save(storage, 2, keep=2)
    assert iterations(storage) == [2, 2]


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("iteration", [1, 9])
def test_what_is_not_complete_takes_no_place(storage, keep, iteration):
    for complete in (1, 2, 3):
        save(storage, complete)
    unfinished, damaged = (f"it-{iteration:08d}-{stamp:016x}" for stamp in (0, 2**63))
    storage.write(f"{unfinished}/{STATE}", b"half")
    storage.write(f"{damaged}/{STATE}", b"half")
    storage.write(f"{damaged}/{MANIFEST}", b"{}")
    save(storage, 4, keep)
    assert iterations(storage) == [1, 2, 3, 4][-keep:]
    assert newest(storage) == 4


def test_foreign_folders_and_files_stay(disk):
    (disk.root / "notes").mkdir()
    (disk.root / "it-is-a-file").touch()
    save(disk, 1, keep=1)
    save(disk, 2, keep=1)
    assert {path.name for path in disk.root.iterdir()} > {"notes", "it-is-a-file"}
    assert newest(disk) == 2


@pytest.mark.parametrize("now", [lambda: 5, iter(range(9, 0, -1)).__next__], ids=["stands still", "goes back"])
def test_the_last_save_of_an_iteration_wins_whatever_the_clock_does(disk, monkeypatch, now):
    monkeypatch.setattr(time, "time_ns", now)
    for steps in (1, 2, 3):
        path = checkpoint.save(disk, TrainState(4, steps, {}), {}, 9, pytest.fail)
        assert (
            checkpoint.load_newest(disk, pytest.fail)[0].num_env_steps
            == checkpoint.load(path)[0].num_env_steps
            == steps
        )


# What fails


class FailingStorage(LocalStorage):
    """Fails at ``operation`` on names that end so."""

    def __init__(self, root, operation, end):
        super().__init__(root)

        def fail(name, *args):
            if name.endswith(end):
                raise OSError(28, "No space left on device", name)
            return getattr(LocalStorage, operation)(self, name, *args)

        object.__setattr__(self, operation, fail)


@pytest.mark.parametrize("part", [STATE, MANIFEST])
def test_a_save_that_fails_leaves_earlier_ones_and_nothing_else(disk, part):
    save(disk, 1)
    with pytest.raises(OSError, match="No space left"):
        save(FailingStorage(disk.root, "write", part), 2, keep=1)
    assert iterations(disk) == [1] and newest(disk) == 1


def test_a_removal_that_fails_is_told_and_no_failed_save(disk):
    old = Path(save(disk, 1))
    warnings = []
    save(FailingStorage(disk.root, "remove", old.name), 2, keep=1, warn=warnings.append)
    assert len(warnings) == 1 and str(old) in warnings[0] and "No space left" in warnings[0]
    assert newest(disk) == 2
    assert [path.name for path in old.iterdir()] == [STATE], "the manifest goes first"


def test_what_cannot_be_read_now_is_not_taken_for_incomplete(disk):
    """A store that does not answer for a moment must not cost a checkpoint."""
    old = save(disk, 1)
    warnings = []
    save(FailingStorage(disk.root, "read", MANIFEST), 2, keep=2, warn=warnings.append)
    assert len(warnings) == 1 and old in warnings[0]
    assert iterations(disk) == [1, 2]


def test_a_run_folder_that_vanished_is_not_made_again(disk):
    save(disk, 1)
    disk.remove(".")
    with pytest.raises(FileNotFoundError):
        save(disk, 2)
    assert not disk.root.exists()


def test_a_storage_that_does_not_list_is_not_an_empty_one(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(CheckpointError, match=r"checkpoints does not list .* make it readable"):
        checkpoint.load_newest(open_storage(tmp_path / "checkpoints"), pytest.fail)


def test_a_checkpoint_that_cannot_be_read_is_named_and_skipped(disk):
    save(disk, 1)
    path = Path(save(disk, 2))
    (path / STATE).unlink()
    (path / STATE).mkdir()
    warnings = []
    assert newest(disk, warnings.append) == 1
    assert len(warnings) == 1 and str(path) in warnings[0] and "Is a directory" in warnings[0]


# Damage and kills


@pytest.mark.parametrize("seed", range(100))
def test_no_damage_goes_unseen(disk, seed):
    rng = random.Random(seed)
    paths = [Path(save(disk, iteration)) for iteration in (1, 2, 2, 3)]
    path = rng.choice(paths)
    done = damage(path, rng)
    with pytest.raises(CheckpointError, match=path.name):
        raise AssertionError(done, checkpoint.load(path))
    warnings = []
    assert newest(disk, warnings.append) in (1, 2, 3)
    save(disk, 3, keep=9)
    assert newest(disk) == 3


VALUES = {
    "iteration": [2.0, True, "2", None, 3],
    "num_env_steps": [-1, 0.5, None],
    "identity": [None, []],
    "files": [{}],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in VALUES.items() for value in values])
def test_a_sealed_manifest_of_odd_content_is_no_manifest(disk, key, value):
    path = Path(save(disk, 2))
    manifest = json.loads((path / MANIFEST).read_text())
    for odd in (manifest | {key: value}, {name: kept for name, kept in manifest.items() if name != key}):
        (path / MANIFEST).write_bytes(checkpoint.sealed(odd))
        with pytest.raises(CheckpointError, match=path.name):
            checkpoint.load(path)


@pytest.mark.parametrize(
    "manifest", [b"", b"[]", b"3", b"null", b"[" * 10**5, b'{"format": 2}', b"\xff\xfe", b"\0" * 99]
)
def test_what_is_not_a_manifest(disk, manifest):
    path = Path(save(disk, 2))
    (path / MANIFEST).write_bytes(manifest)
    with pytest.raises(CheckpointError, match=path.name):
        checkpoint.load(path)


def bad_states(good):
    rng = random.Random(0)
    yield from (b"", b"not a zip file", b"PK\x03\x04")
    for _ in range(300):
        data = bytearray(good)
        data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        yield bytes(data)


def test_a_state_that_its_manifest_vouches_for_but_is_none(disk):
    """No byte of a state is trusted because of its checksum: whatever a reader raises, it is a CheckpointError."""
    path = Path(save(disk, 2))
    manifest = json.loads((path / MANIFEST).read_text())
    refused = 0
    for bad in bad_states((path / STATE).read_bytes()):
        (path / STATE).write_bytes(bad)
        (path / MANIFEST).write_bytes(checkpoint.sealed(manifest | {"files": {STATE: hashlib.sha256(bad).hexdigest()}}))
        try:
            checkpoint.load(path)
        except CheckpointError:
            refused += 1
    assert refused > 100


def test_nothing_is_unpickled(disk, monkeypatch):
    class Evil:
        def __reduce__(self):
            return os.abort, ()

    path = checkpoint.save(disk, TrainState(1, 1, {"params_P": np.array([Evil()], dtype=object)}), {}, 1, pytest.fail)
    with pytest.raises(CheckpointError, match="allow_pickle"):
        checkpoint.load(path)


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_save_leaves_the_old_state_or_the_new_one(disk, point):
    save(disk, 1)
    save_and_die(disk.root, make_state(2), point, {"seed": 3})
    is_new = POINTS.index(point) >= POINTS.index("after the manifest")
    warnings = []
    assert newest(disk, warnings.append) == (2 if is_new else 1)
    assert len(warnings) == (point in ("in the state", "before the manifest", "in the manifest"))
    save(disk, 2, keep=1)
    assert iterations(disk) == [2] and newest(disk) == 2
