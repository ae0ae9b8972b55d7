import json

import numpy as np
import pytest

from ssm_metarl.runtime import checkpoint
from ssm_metarl.runtime.checkpoint import CheckpointError, TrainState


def make_state(iteration):
    arrays = {"params_P": np.arange(4, dtype=np.float32) + iteration, "step": np.float32(iteration)}
    return TrainState(iteration, 100 * iteration, arrays)


def test_round_trip_and_retention(tmp_path):
    for iteration in (1, 2, 10):
        checkpoint.save(tmp_path, make_state(iteration), {"seed": 3}, keep=2)
    assert sorted(path.name[:11] for path in tmp_path.iterdir()) == ["it-00000002", "it-00000010"]
    state, identity = checkpoint.load_newest(tmp_path, pytest.fail)
    assert (state.iteration, state.num_env_steps, identity) == (10, 1000, {"seed": 3})
    np.testing.assert_array_equal(state.arrays["params_P"], make_state(10).arrays["params_P"])


def test_a_saved_iteration_saved_again_wins(tmp_path):
    checkpoint.save(tmp_path, make_state(4), {}, keep=9)
    newer = TrainState(4, 7, {"params_P": np.zeros(1, np.float32)})
    checkpoint.save(tmp_path, newer, {}, keep=9)
    assert checkpoint.load_newest(tmp_path, pytest.fail)[0].num_env_steps == 7


def damage_flip(path):
    data = bytearray((path / "state.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "state.npz").write_bytes(data)


def damage_manifest(path):
    (path / "manifest.json").write_text("[]")


def damage_version(path):
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))


DAMAGES = {
    "a flipped bit": damage_flip,
    "truncated": lambda path: (path / "state.npz").write_bytes((path / "state.npz").read_bytes()[:-1]),
    "no data": lambda path: (path / "state.npz").unlink(),
    "no manifest": lambda path: (path / "manifest.json").unlink(),
    "half a manifest": lambda path: (path / "manifest.json").write_text((path / "manifest.json").read_text()[:30]),
    "another manifest": damage_manifest,
    "another format": damage_version,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_named_and_skipped(tmp_path, damage):
    checkpoint.save(tmp_path, make_state(1), {}, keep=9)
    newest = checkpoint.save(tmp_path, make_state(2), {}, keep=9)
    damage(newest)
    with pytest.raises(CheckpointError, match=newest.name):
        checkpoint.load(newest)
    warnings = []
    state, _ = checkpoint.load_newest(tmp_path, warnings.append)
    assert state.iteration == 1 and len(warnings) == 1 and newest.name in warnings[0]


def test_nothing_to_load(tmp_path):
    assert checkpoint.load_newest(tmp_path / "absent", pytest.fail) is None
