"""A trained policy put to work: it acts as it did in training, follows its adapter, and is not loaded damaged."""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import safetensors.numpy
import torch
import yaml
from gymnasium.spaces import Box, Discrete

from ssm_metarl import pretrained
from ssm_metarl.config import ConfigError, load_config
from ssm_metarl.deployment import DeployedPolicy, export, load_policy
from ssm_metarl.env_runner.rollout import action_scaler
from ssm_metarl.env_runner.tasks import make_family
from ssm_metarl.runtime.checkpoint import CheckpointError
from ssm_metarl.runtime.driver import MetaTrainer
from ssm_metarl.runtime.metrics import params_sha256
from ssm_metarl.runtime.policy_file import Spaces
from ssm_metarl.runtime.worker import make_policy

NAVIGATION, CARTPOLE = "ssm_metarl/Navigation2D-v0", "ssm_metarl/CartPole-v0"
ALL_INPUTS = ("previous_reward", "observation", "episode_start", "previous_action")


def deployed(env_id=CARTPOLE, **settings):
    settings = {"env.id": env_id, "env.horizon": 12, "policy.hidden_dim": 5, "inner.lr": 2.0, **settings}
    config = load_config(None, settings)
    family = make_family(config.env)
    policy = make_policy(family, config)
    with torch.no_grad():
        policy.core.head.weight.mul_(100.0)  # So that actions depend on what was observed.
    return DeployedPolicy(config, policy.to_vector(), Spaces.of(family))


@pytest.mark.parametrize("core", ["ssm", "gru", "mlp"])
@pytest.mark.parametrize("inputs", [("observation",), ALL_INPUTS], ids=["observation", "all"])
@pytest.mark.parametrize("env_id", [NAVIGATION, CARTPOLE, "ssm_metarl/Pendulum-v0"])
def test_it_acts_as_in_the_rollouts_of_training(env_id, inputs, core):
    """With the same random stream, every action of a rollout: scaled to the space, and clipped to it."""
    policy = deployed(env_id, **{"policy.inputs": inputs, "policy.core": core, "policy.initial_log_std": 0.5})
    vector = make_family(policy.config.env).make_vector(6)
    rollout = policy.life.play(vector, 12, np.random.default_rng(3))
    assert rollout.num_steps > 6
    policy.rng = np.random.default_rng(3)
    policy.rng.integers(2**31)
    space = policy.spaces.action_space
    lasting = int(rollout.mask_TB.sum(axis=0).max())
    for t in range(lasting):
        reward_B = rollout.reward_TB[t - 1] if t else None
        actions = policy.act(rollout.observation_TBO[t], reward_B, sample=True)
        expected = action_scaler(space)(rollout.action_TBA[t])
        if isinstance(space, Box):
            expected = np.clip(expected, space.low, space.high)
        np.testing.assert_array_equal(actions, expected)
        assert all(space.contains(action) for action in actions)


@pytest.mark.parametrize("env_id", [NAVIGATION, CARTPOLE])
def test_a_single_row_is_a_batch_of_one(env_id):
    alone, batch = deployed(env_id), deployed(env_id)
    for observation_O in np.random.default_rng(0).normal(size=(5, alone.spaces.observation_dim)):
        action = alone.act(observation_O)
        assert alone.spaces.action_space.contains(action)
        np.testing.assert_array_equal(action, batch.act(observation_O[None])[0])


def test_without_sampling_the_most_probable_action_is_repeated():
    policy = deployed(NAVIGATION)
    observation_O = np.array([0.2, -0.1])
    first = policy.act(observation_O)
    policy.reset()
    np.testing.assert_array_equal(policy.act(observation_O), first)
    policy.reset()
    assert (policy.act(observation_O, sample=True) != first).any()


def test_reset_forgets_all_rows_or_the_marked_ones():
    policy, fresh = deployed(**{"policy.inputs": ALL_INPUTS}), deployed(**{"policy.inputs": ALL_INPUTS})
    observation_BO = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    carried = [policy.act(observation_BO, np.ones(3)) for _ in range(2)][-1]
    state_LBN = policy._carry_LBN.copy()
    policy.reset(np.array([False, True, False]))
    fresh.act(observation_BO, np.ones(3))
    policy.act(observation_BO, np.ones(3))
    np.testing.assert_array_equal(policy._carry_LBN[:, 1], fresh._carry_LBN[:, 1])
    assert (policy._carry_LBN[:, [0, 2]] != state_LBN[:, [0, 2]]).any() and carried.shape == (3,)
    policy.reset()
    assert np.ndim(policy.act(observation_BO[0])) == 0
    with pytest.raises(ValueError, match="one bool per row"):
        policy.reset(np.array([True, False]))


def test_what_cannot_be_acted_on_is_refused_and_not_remembered():
    policy = deployed(**{"policy.inputs": ("observation", "previous_reward")})
    for wrong in (np.zeros(3), np.zeros((2, 3)), np.zeros((0, 4)), np.zeros((1, 1, 4))):
        with pytest.raises(ValueError, match=r"shape \[4\] or \[B, 4\]"):
            policy.act(wrong)
    with pytest.raises(ValueError, match="not finite"):
        policy.act(np.array([0.0, np.nan, 0.0, 0.0]))
    policy.act(np.zeros(4))
    with pytest.raises(ValueError, match="reward of the last step"):
        policy.act(np.zeros(4))
    with pytest.raises(ValueError, match="reward is not finite"):
        policy.act(np.zeros(4), np.inf)
    with pytest.raises(ValueError, match=r"call reset\(\)"):
        policy.act(np.zeros((2, 4)), 0.0)
    policy.act(np.zeros(4), 1.0)


@pytest.mark.parametrize("way", ["adapter", "data", "numpy"])
def test_it_acts_on_the_parameters_as_they_are(way):
    """However they were changed, in the midst of an episode too."""
    policy, observation_O = deployed(NAVIGATION), np.array([0.3, 0.1])
    before = policy.act(observation_O)
    bias = policy.policy.core.head.bias
    if way == "adapter":
        vector = make_family(policy.config.env).make_vector(8)
        vector.set_tasks({"goal_x": 0.5, "goal_y": 0.5})
        assert policy.life.learn(policy.life.play(vector, 12, np.random.default_rng(0)))["steps"] == 1
    elif way == "data":
        bias.data = bias.data - 0.5
    else:
        bias.detach().numpy()[:] -= 0.5
    policy.reset()
    changed = policy.act(observation_O)
    assert (changed != before).any()
    fresh = DeployedPolicy(policy.config, policy.policy.to_vector(), policy.spaces)
    np.testing.assert_array_equal(fresh.act(observation_O), changed)
    policy.adapter.reset()
    if way == "adapter":
        policy.reset()
        np.testing.assert_array_equal(policy.act(observation_O), before)


class OddSpaces(gymnasium.Env):
    """Actions that count from -1, or of float64 with bounds of their own; observations that are flattened."""

    observation_space = gymnasium.spaces.Dict({"a": Box(-1, 1, (2,), np.float32), "b": Discrete(3)})

    def __init__(self, discrete=True):
        self.action_space = (
            Discrete(3, start=-1) if discrete else Box(np.array([-1.0, 0.0]), np.array([3.0, 0.5]), dtype=np.float64)
        )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        return self.observation_space.sample(), 0.0, False, False, {}


@pytest.fixture
def odd_spaces():
    gymnasium.register("test/Odd-v0", OddSpaces, max_episode_steps=5)
    gymnasium.register("test/OddBox-v0", OddSpaces, max_episode_steps=5, kwargs={"discrete": False})
    yield
    del gymnasium.registry["test/Odd-v0"], gymnasium.registry["test/OddBox-v0"]


@pytest.mark.parametrize("env_id", ["test/Odd-v0", "test/OddBox-v0"])
def test_actions_are_those_of_the_environment_itself(odd_spaces, tmp_path, env_id):
    policy = load_policy(deployed(env_id).save(tmp_path / "odd.safetensors"))
    env = gymnasium.wrappers.FlattenObservation(gymnasium.make(env_id, disable_env_checker=True))
    observation, _ = env.reset(seed=0)
    for _ in range(5):
        action = policy.act(observation, sample=True)
        assert env.action_space.contains(action)
        observation, *_ = env.step(action)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    settings = {"run.dir": str(tmp_path_factory.mktemp("runs")), "run.name": "small", "workers.num_workers": 0}
    tiny = {"iterations": 2, "tasks_per_iteration": 2, "env.horizon": 5, "env.episodes_per_task": 2}
    config = load_config(None, {**settings, **tiny, "eval.num_tasks": 2, "policy.hidden_dim": 4})
    return MetaTrainer(config).run()


def test_a_run_is_exported_and_loaded_bit_for_bit(run):
    path = export(run.folder)
    assert path == run.folder / "policy.safetensors" and path.stat().st_size < 4000
    from_run, from_file = load_policy(run.folder), load_policy(str(path))
    for policy in (from_run, from_file):
        assert params_sha256(policy.policy.to_vector()) == run.params_sha256
        assert policy.config.identity() == from_run.config.identity()
        assert policy.spaces == Spaces(2, Box(-0.1, 0.1, (2,), np.float32))
        assert policy.adapter.strategy == "meta" and policy.adapter.cfg.lr == policy.config.inner.lr
    described = yaml.safe_load(path.with_suffix(".yaml").read_text())
    assert described["params_sha256"] == run.params_sha256 and described["config"]["env"]["horizon"] == 5
    assert "workers" not in described["config"] and described["versions"]["torch"] == torch.__version__


def test_loading_and_acting_needs_no_ray(run, tmp_path):
    path = export(run.folder, tmp_path / "a.safetensors")
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from ssm_metarl import load_policy\n"
        f"for source in ({str(path)!r}, {str(run.folder)!r}):\n"
        "    assert load_policy(source).act([0.1, 0.2]).shape == (2,)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_overrides_are_laid_over_the_training(run):
    policy = load_policy(run.folder, {"adapter.strategy": "online", "adapter.lr": 0.03})
    assert policy.adapter.strategy == "online" and policy.adapter.cfg.lr == 0.03
    path = export(run.folder, run.folder / "online.safetensors", {"adapter.strategy": "online"})
    assert load_policy(path).adapter.strategy == "online"


def test_another_environment_of_the_same_sizes(tmp_path):
    path = deployed().save(tmp_path / "a.safetensors")
    policy = load_policy(path, {"env.id": "CartPole-v1", "env.vary": {"length": {"uniform": [0.3, 1.0]}}})
    assert policy.config.env.horizon is None and list(policy.config.env.vary) == ["length"]
    assert load_policy(path, {"env.horizon": 7}).config.env.horizon == 7
    with pytest.raises(
        ConfigError, match=r"Acrobot-v1 has observations of 6 numbers and 3 .* trained on ssm_metarl/Cart"
    ):
        load_policy(path, {"env.id": "Acrobot-v1"})


def test_what_is_not_there_or_cannot_be_changed(tmp_path, run):
    for source in (tmp_path / "none", "none.safetensors", "none"):
        with pytest.raises(ConfigError, match=r"neither a run's folder nor a \.safetensors file"):
            load_policy(source)
    with pytest.raises(ConfigError, match=r"no config\.yaml"):
        load_policy(tmp_path)
    with pytest.raises(ConfigError, match=r"policy\.core: .* cannot be changed"):
        load_policy(run.folder, {"policy.core": "mlp"})
    with pytest.raises(ConfigError, match=r"inner\.lrr"):
        load_policy(run.folder, {"inner.lrr": 1.0})
    with pytest.raises(ConfigError, match=r"ends in \.safetensors"):
        deployed().save(tmp_path / "policy.pt")
    with pytest.raises(ConfigError, match="--out"):
        export("pretrained:navigation2d")


def test_names_of_pretrained_policies(monkeypatch, tmp_path):
    for name in ("cartpole", "navigation2d"):
        (tmp_path / f"{name}.safetensors").touch()
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    with pytest.raises(ConfigError, match=r"'cartpol'; did you mean cartpole\?"):
        load_policy("pretrained:cartpol")
    with pytest.raises(ConfigError, match="there are cartpole, navigation2d"):
        load_policy("pretrained:x")


@pytest.fixture
def saved(tmp_path):
    return deployed(**{"policy.core": "mlp"}).save(tmp_path / "a.safetensors")


def change(path, **values):
    file = path.with_suffix(".yaml")
    tree = yaml.safe_load(file.read_text()) | values
    file.write_text(yaml.safe_dump({key: value for key, value in tree.items() if value is not None}))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"format": 2}, "its format is 2, and this version of ssm_metarl reads 1"),
        ({"format": None}, "its format is null"),
        ({"observation_size": 5}, "input_size is 4, but its inputs have 5"),
        ({"observation_size": 5, "input_size": 5}, r"parameter core\..*weight is .* has"),
        ({"observation_size": True}, "not a positive whole number"),
        ({"action": {"count": 3, "start": 0}}, r"parameter core\.head\.bias"),
        ({"action": {"low": [0.0], "high": [1.0], "dtype": "float32"}}, "parameter"),
        ({"action": {"low": [0.0], "high": [1.0, 2.0], "dtype": "float32"}}, ""),
        ({"action": {}}, ""),
        ({"params_sha256": "0" * 64}, "do not have the params_sha256"),
        ({"params_sha256": None}, "params_sha256"),
        ({"config": {"policy": {"core": "mpl"}}}, "did you mean mlp"),
        ({"config": 3}, ""),
    ],
)
def test_a_description_that_does_not_fit_is_refused(saved, values, words):
    change(saved, **values)
    with pytest.raises(CheckpointError, match=rf"a\.safetensors cannot be used: .*{words}"):
        load_policy(saved)


def test_files_that_do_not_belong_together_or_are_not_whole_are_refused(saved, tmp_path):
    other = deployed(**{"policy.core": "mlp", "seed": 1}).save(tmp_path / "b.safetensors")
    whole = saved.read_bytes()
    for data in (other.read_bytes(), whole[:-1], whole + b"\0", b"", whole[:100], b"\xff" * 200):
        saved.write_bytes(data)
        with pytest.raises(CheckpointError):
            load_policy(saved)
    arrays = safetensors.numpy.load(whole)
    saved.write_bytes(safetensors.numpy.save({name: array.astype(np.float64) for name, array in arrays.items()}))
    with pytest.raises(CheckpointError, match="float64"):
        load_policy(saved)
    saved.write_bytes(whole)
    saved.with_suffix(".yaml").unlink()
    with pytest.raises(CheckpointError, match=r"a\.yaml: no such file"):
        load_policy(saved)


def test_no_flipped_bit_changes_a_parameter_unseen(saved):
    """Each byte of the file in turn: refused, or (spaces in its header) without any effect."""
    whole, expected = saved.read_bytes(), load_policy(saved).policy.to_vector().tobytes()
    rng, refused = np.random.default_rng(0), 0
    places = range(0, len(whole), 3)
    for place in places:
        data = bytearray(whole)
        data[place] ^= int(rng.integers(1, 256))
        saved.write_bytes(data)
        try:
            assert load_policy(saved).policy.to_vector().tobytes() == expected
        except CheckpointError:
            refused += 1
    assert refused > 0.9 * len(places)
