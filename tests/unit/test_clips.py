"""Pictures of a policy before and after it adapted: clips of what can be rendered, paths through Navigation2D."""

import re
import sys
import xml.etree.ElementTree

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from PIL import Image, ImageSequence
from test_deployment import CARTPOLE, NAVIGATION, deployed

from ssm_metarl.cli import main
from ssm_metarl.config import ConfigError
from ssm_metarl.evaluation import clips
from ssm_metarl.evaluation.live import Home, live
from ssm_metarl.evaluation.trajectories import MOST_PATHS, Walks, draw_trajectories, paths, trajectory_picture


def make_clip(path, policy, home):
    finish = clips.start_video(path, policy, home)
    finish(live(policy, home, None, lambda _: None))
    with Image.open(path) as clip:
        return [np.asarray(frame.convert("RGB"), dtype=int) for frame in ImageSequence.Iterator(clip)]


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
@pytest.mark.parametrize("env_id", [NAVIGATION, CARTPOLE, "ssm_metarl/Pendulum-v0", "Acrobot-v1"])
def test_a_clip_shows_both_episodes_side_by_side(tmp_path, env_id, suffix):
    policy = deployed(env_id, **{"env.horizon": 4, "env.episodes_per_task": 2})
    clip = make_clip(tmp_path / f"a{suffix}", policy, Home.choose(policy, 0))
    assert 2 <= len(clip) <= 5 and clip[0].shape[1] >= 2 * clips.PANEL_HEIGHT
    assert len(np.unique(clip[0])) > 3, "something is drawn"
    assert np.abs(clip[0] - clip[-1]).max() > 100, "and it moves"


def test_filming_starts_alike_and_changes_nothing_else():
    policy = deployed(NAVIGATION, **{"env.episodes_per_task": 2})
    home = Home.choose(policy, 0)
    before = policy.policy.to_vector()
    once, twice = clips.film(policy, home), clips.film(policy, home)
    assert once.total_return == twice.total_return and np.array_equal(once.frames, twice.frames)
    np.testing.assert_array_equal(policy.policy.to_vector(), before)


class Rendered(gymnasium.Env):
    """Renders its counter as brightness; ``task`` is a number that the pictures show."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (gymnasium's)
    observation_space, action_space = Box(-1, 1, (2,), np.float32), Discrete(2)
    render_mode, size = None, 30.0

    def __init__(self):
        self.size = 30.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.count += 1
        return np.zeros(2, np.float32), 1.0, self.count == 3, False, {}

    def render(self):
        if self.render_mode == "rgb_array":
            return np.full((int(self.size), 40, 3), 60 * self.count, np.uint8)
        return None


class Blind(Rendered):
    def render(self):
        return None


class Broken(Rendered):
    def render(self):
        raise OSError("no graphics card")


@pytest.fixture(params=[Rendered, Blind, Broken])
def env_class(request):
    gymnasium.register("test/Rendered-v0", request.param, max_episode_steps=5)
    yield request.param
    del gymnasium.registry["test/Rendered-v0"]


def test_any_environment_that_renders_is_filmed_in_its_task(env_class, tmp_path):
    policy = deployed("test/Rendered-v0", **{"env.vary": {"size": {"choice": [50.0]}}, "env.horizon": 5})
    home = Home.choose(policy, 0)
    if env_class is Rendered:
        film = clips.film(policy, home)
        assert [frame.getpixel((0, 0))[0] for frame in film.frames] == [0, 60, 120, 180]
        assert film.frames[0].size == (216, 270), "as wide as 40 x 50 is when it is made 270 high"
        assert film.total_return == 3.0
        return
    words = {Blind: "does not render pictures", Broken: "cannot be rendered here: no graphics card"}[env_class]
    with pytest.raises(ConfigError, match=words):
        clips.start_video(tmp_path / "a.gif", policy, home)


def test_a_long_episode_is_filmed_in_fewer_pictures(monkeypatch):
    monkeypatch.setattr(clips, "MOST_FRAMES", 4)
    policy = deployed("ssm_metarl/Pendulum-v0", **{"env.horizon": 10})
    assert len(clips.film(policy, Home.choose(policy, 0)).frames) == 1 + 3 + 1


def test_what_is_missing_is_named_with_its_cure(tmp_path, capsys, monkeypatch):
    saved = deployed(CARTPOLE, **{"env.episodes_per_task": 2}).save(tmp_path / "a.safetensors")
    monkeypatch.setitem(sys.modules, "pygame", None)
    for module in ("ssm_metarl.evaluation.clips", "PIL"):
        with pytest.raises(SystemExit) as ended:
            main(["adapt", str(saved), "--video", str(tmp_path / "a.gif")])
        assert ended.value.code == 2 and 'pip install "ssm-metarl[video]"' in capsys.readouterr().err
        monkeypatch.setitem(sys.modules, module, None)


def test_the_name_of_a_video_is_checked_first(tmp_path):
    policy = deployed(CARTPOLE)
    home = Home.choose(policy, 0)
    for name, words in (("a.mp4", r"\.gif, \.webp"), ("a.svg", NAVIGATION), ("none/a.gif", "no such folder")):
        with pytest.raises(ConfigError, match=words):
            clips.start_video(tmp_path / name, policy, home)


def test_paths_end_where_the_episodes_do():
    policy = deployed(NAVIGATION, **{"env.episodes_per_task": 5, "env.horizon": 40})
    vector = Home.choose(policy, 0).family.make_vector(5)
    vector.set_tasks({"goal_x": 0.05, "goal_y": 0.0})
    rollout = policy.life.play(vector, 40, np.random.default_rng(0))
    for row, path in enumerate(paths(rollout)):
        steps = int(rollout.mask_TB[:, row].sum())
        assert path.shape == (steps + 1, 2) and not path[0].any()
        moves = np.clip(0.1 * rollout.action_TBA[:steps, row], -0.1, 0.1)
        np.testing.assert_allclose(path[-1], moves.sum(axis=0), atol=1e-5)


def test_the_drawing_has_a_panel_for_each_task_and_says_what_it_shows():
    policy = deployed(NAVIGATION, **{"env.episodes_per_task": 5})
    title, svg = trajectory_picture(policy, num_tasks=4)
    root = xml.etree.ElementTree.fromstring(svg)
    assert title and len(root.findall("{*}svg")) == 4 and svg.count("<polyline") == 4 * 2 * MOST_PATHS
    assert all(f"task {index}: −" in svg for index in range(4))
    assert set(re.findall(r"var\(--(\w+),", svg)) == {"ink", "muted", "before", "after"}
    assert not re.search(r"(href|url\(|<script|<style)", svg)
    assert trajectory_picture(deployed(CARTPOLE)) is None


def test_drawing_leaves_the_policy_as_it_was():
    policy = deployed(NAVIGATION, **{"env.episodes_per_task": 3})
    before = policy.policy.to_vector()
    assert trajectory_picture(policy, 2) == trajectory_picture(policy, 2)
    np.testing.assert_array_equal(policy.policy.to_vector(), before)


def test_a_goal_is_where_it_belongs():
    walk = Walks({"goal_x": 0.5, "goal_y": 0.5}, [np.zeros((2, 2))], [np.zeros((2, 2))], "task 0: <-1>")
    svg = draw_trajectories([walk])
    ring = re.search(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="6" style="fill:none', svg[svg.index("<rect") :])
    width = float(re.search(r'<svg x="[\d.]+" y="[\d.]+" width="([\d.]+)"', svg)[1])
    assert float(ring[1]) > 0.8 * width and float(ring[2]) < 0.2 * width, "right, and up"
    assert "&lt;-1&gt;" in svg
