"""How fast are rollouts? Environment steps of whole closed loops, and of environments alone, beside what they replace.

    python benchmarks/rollout.py [--quick] [--json FILE] [--only PART ...]

One core, process time; the arms of a part are measured in turn (ours, theirs, ours, ...) in one process. Medians, and
ratios of pairs that were measured side by side with a 95 % bootstrap interval.

- limit: the closed loop of `collect` on HalfCheetahVel against MuJoCo's ``mj_step`` alone, on the same states and
  controls: the share of the time that is physics. 1 would be a loop that costs nothing.
- peer: the same against gymnasium's SyncVectorEnv of HalfCheetah-v5 with a torch policy that samples under
  inference mode and records what a rollout records.
- environments: a step of all rows, no policy, against SyncVectorEnv of the same robot; both reset ended rows.
- cartpole: the same for CartPole, where each of our rows has its own physics.
- navigation, sampling: environment steps per CPU-second of `collect`, the reset and the record included.
- generic: a row of a family of any gymnasium id, as rollouts step it (without infos that they do not read), against the
  ``step`` of the same environment in a bare loop.
- start: CPU seconds per class until a fresh worker has reset a row of each of ML10's training classes, beyond imports.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import nn

from ssm_metarl.config import EnvConfig, TrainConfig, load_config
from ssm_metarl.core.policy import FoldedPolicy
from ssm_metarl.env_runner.family import TaskFamily
from ssm_metarl.env_runner.rollout import collect
from ssm_metarl.env_runner.tasks import make_family
from ssm_metarl.env_runner.vector import MetaVectorEnv
from ssm_metarl.runtime.process import limit_threads
from ssm_metarl.runtime.worker import make_policy

HORIZON = 100
Arm = Callable[[], float]
"""Does its work and returns CPU seconds per environment step."""


def setting(env_id: str, core: str, hidden: int) -> tuple[TaskFamily, TrainConfig, FoldedPolicy]:
    config = load_config(None, {"env.id": env_id, "policy.core": core, "policy.hidden_dim": hidden})
    family = make_family(config.env)
    return family, config, make_policy(family, config).fold()


def timed(steps: int, work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return (time.process_time() - began) / steps


class ClosedLoop:
    """`collect` on HalfCheetahVel, then ``mj_step`` alone along the same trajectories."""

    def __init__(self, core: str, rows: int) -> None:
        self.family, _, self.policy = setting("ssm_metarl/HalfCheetahVel-v0", core, 64)
        self.vector = self.family.make_vector(rows)
        self.rows, self.seed, self.rollout = rows, 0, None
        xml = Path(gymnasium.__file__).parent / "envs/mujoco/assets/half_cheetah.xml"
        self.model = mujoco.MjModel.from_xml_path(str(xml))
        self.data = [mujoco.MjData(self.model) for _ in range(rows)]

    def ours(self) -> float:
        self.seed += 1
        self.vector.set_tasks(self.family.sample(np.random.default_rng(self.seed), 1)[0])
        began = time.process_time()
        self.rollout = collect(self.vector, self.policy, HORIZON, ("observation",), np.random.default_rng(self.seed))
        return (time.process_time() - began) / self.rollout.num_steps

    def physics(self) -> float:
        """Of the rollout before; the time that writing the controls takes is measured on its own and taken off."""
        self.vector.reset(seed=int(np.random.default_rng(self.seed).integers(2**31)))
        for own, state_S in zip(self.data, self.vector.simulator.state_NS, strict=True):
            mujoco.mj_resetData(self.model, own)
            own.qpos[:], own.qvel[:] = np.split(state_S, [self.model.nq])
            mujoco.mj_forward(self.model, own)
        control_TBA = np.clip(self.rollout.action_TBA, -1, 1).astype(np.float64)
        pairs, step = [(own, own.ctrl) for own in self.data], mujoco.mj_step

        def replay() -> None:
            for control_BA in control_TBA:
                for (own, control), value_A in zip(pairs, control_BA, strict=True):
                    control[:] = value_A
                    step(self.model, own, nstep=5)

        def write() -> None:
            for control_BA in control_TBA:
                for (_, control), value_A in zip(pairs, control_BA, strict=True):
                    control[:] = value_A

        steps = self.rollout.num_steps
        return timed(steps, replay) - timed(steps, write)


class Peer:
    """SyncVectorEnv of HalfCheetah-v5 and a torch policy, as most code samples."""

    def __init__(self, rows: int) -> None:
        self.vector = gymnasium.make_vec("HalfCheetah-v5", num_envs=rows, vectorization_mode="sync")
        self.net = nn.Sequential(nn.Linear(17, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 6))
        self.log_std, self.rows = torch.full((6,), -0.5), rows

    @torch.inference_mode()
    def roll(self) -> None:
        observations = np.zeros((HORIZON, self.rows, 17), np.float32)
        actions = np.zeros((HORIZON, self.rows, 6), np.float32)
        rewards, logps = np.zeros((HORIZON, self.rows), np.float32), np.zeros((HORIZON, self.rows), np.float32)
        observation, _ = self.vector.reset(seed=0)
        for t in range(HORIZON):
            observations[t] = observation
            mean = self.net(torch.from_numpy(observations[t]))
            normal = torch.distributions.Normal(mean, self.log_std.exp(), validate_args=False)
            action = normal.sample()
            logps[t], actions[t] = normal.log_prob(action).sum(-1).numpy(), action.numpy()
            observation, rewards[t], *_ = self.vector.step(actions[t])

    def theirs(self) -> float:
        return timed(HORIZON * self.rows, self.roll)


def stepping(vector: gymnasium.vector.VectorEnv, calls: int) -> Arm:
    """Steps of all rows with actions drawn beforehand; ended rows begin again as gymnasium does it."""
    vector.action_space.seed(0)
    actions = [vector.action_space.sample() for _ in range(calls)]
    vector.reset(seed=0)

    def work() -> None:
        for action in actions:
            vector.step(action)

    return lambda: timed(calls * vector.num_envs, work)


def generic(env_id: str, rows: int, calls: int) -> dict[str, Arm]:
    """A family's rows as rollouts step them, and a bare loop over the very same environments; no episode ends."""
    vector = make_family(EnvConfig(id=env_id, horizon=10**9)).make_vector(rows)
    vector.wanted_infos = ("success",)
    for env in vector.envs:
        while env is not env.unwrapped:
            if isinstance(env, gymnasium.wrappers.TimeLimit):
                env._max_episode_steps = 10**9
            env = env.env
        if env_id.startswith("CartPole"):
            env.tau = 1e-9  # Time stands still, and the pole.
    whole = stepping(vector, calls)
    vector.action_space.seed(0)
    actions = [list(vector.action_space.sample()) for _ in range(calls)]

    def work() -> None:
        for row_actions in actions:
            for env, action in zip(vector.envs, row_actions, strict=True):
                env.step(action)

    return {"ours": whole, "bare": lambda: timed(calls * rows, work)}


def ours(env_id: str, rows: int, tasks: bool = False) -> MetaVectorEnv:
    family = make_family(EnvConfig(id=env_id))
    vector = family.make_vector(rows, AutoresetMode.NEXT_STEP)
    if tasks:
        vector.set_tasks(family.sample(np.random.default_rng(0), rows))
    return vector


def sampling(env_id: str, core: str, hidden: int, rows: int, num_tasks: int) -> Arm:
    """`collect` for some tasks, one after the other."""
    family, config, _ = setting(env_id, core, hidden)
    policy, vector = make_policy(family, config), family.make_vector(rows)
    tasks = family.sample(np.random.default_rng(0), num_tasks)

    def work() -> int:
        steps = 0
        for index, task in enumerate(tasks):
            vector.set_tasks(task)
            rng = np.random.default_rng(index)
            steps += collect(vector, policy.fold(), family.horizon, ("observation",), rng).num_steps
        return steps

    def arm() -> float:
        began = time.process_time()
        steps = work()
        return (time.process_time() - began) / steps

    return arm


def ten_classes() -> Arm:
    """CPU seconds per class until a fresh vector environment has reset a row of each of ML10's training classes."""
    family = make_family(EnvConfig(id="ssm_metarl/ML10-v0"))
    # One task of each class: validation tasks go round the classes, and need no benchmark.
    tasks = family.tasks("validation", 10)

    def arm() -> float:
        vector = family.make_vector(10)

        def start() -> None:
            vector.set_tasks(tasks)
            vector.reset(seed=0)

        seconds = timed(len(tasks), start)
        vector.close()
        return seconds

    return arm


def parts(quick: bool) -> dict[str, Callable[[], list[tuple[str, dict[str, Arm], str, float]]]]:
    """Part -> its lines: (what, arms by name, how the first two compare or ``rate``, the promise)."""
    calls = 5 if quick else 100

    def limit() -> list:
        loops = [("mlp", 20, 0.80), ("mlp", 40, 0.80), ("ssm", 20, 0.65)]
        made = [(core, rows, ClosedLoop(core, rows), promise) for core, rows, promise in loops]
        return [
            (f"HalfCheetahVel, {rows} rows, {core} 64", {"ours": one.ours, "mj_step": one.physics}, "share", promise)
            for core, rows, one, promise in made
        ]

    def peer() -> list:
        return [
            (
                f"HalfCheetahVel, {rows} rows",
                {"ours": ClosedLoop("mlp", rows).ours, "sync": Peer(rows).theirs},
                "times",
                1.7,
            )
            for rows in (20, 40)
        ]

    def environments() -> list:
        found = []
        for robot, env_id, promise in (
            ("HalfCheetah", "HalfCheetahVel", 1.7),
            ("Hopper", "HopperRandParams", 1.7),
            ("Ant", "AntVel", 1.3),
        ):
            theirs = gymnasium.make_vec(f"{robot}-v5", num_envs=20, vectorization_mode="sync")
            arms = {"ours": stepping(ours(f"ssm_metarl/{env_id}-v0", 20), calls), "sync": stepping(theirs, calls)}
            found.append((f"{robot}, 20 rows", arms, "times", promise))
        return found

    def cartpole() -> list:
        found = []
        for rows, promise in ((40, 8.0), (400, 50.0)):
            theirs = gymnasium.make_vec("CartPole-v1", num_envs=rows, vectorization_mode="sync")
            arms = {
                "ours": stepping(ours("ssm_metarl/CartPole-v0", rows, True), calls),
                "sync": stepping(theirs, calls),
            }
            found.append((f"CartPole, {rows} rows", arms, "times", promise))
        return found

    def rates() -> list:
        few = 2 if quick else 20
        return [
            (
                "Navigation2D, 20 tasks x 20 episodes, ssm 32",
                {"ours": sampling("ssm_metarl/Navigation2D-v0", "ssm", 32, 20, few)},
                "rate",
                200_000,
            ),
            (
                "Navigation2D, 20 tasks x 20 episodes, mlp 64",
                {"ours": sampling("ssm_metarl/Navigation2D-v0", "mlp", 64, 20, few)},
                "rate",
                200_000,
            ),
            (
                "HalfCheetahVel, 20 episodes, mlp 64",
                {"ours": sampling("ssm_metarl/HalfCheetahVel-v0", "mlp", 64, 20, 2)},
                "rate",
                22_000,
            ),
        ]

    def start() -> list:
        return [("Meta-World ML10: a worker's start, seconds per class", {"ours": ten_classes()}, "seconds", 0.15)]

    def any_id() -> list:
        ids = ("CartPole-v1", "Pendulum-v1", "HalfCheetah-v5")
        return [(f"{env_id}, 20 rows", generic(env_id, 20, calls), "at most", 1.10) for env_id in ids]

    return {
        "limit": limit,
        "peer": peer,
        "environments": environments,
        "cartpole": cartpole,
        "rates": rates,
        "generic": any_id,
        "start": start,
    }


def measure(arms: dict[str, Arm], repeats: int) -> dict[str, list[float]]:
    """In turn, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeats + 1):
        for name, arm in arms.items():
            seconds[name].append(arm())
    return {name: values[1:] for name, values in seconds.items()}


def median(values: np.ndarray) -> tuple[float, float, float]:
    """With its 95 % bootstrap interval."""
    draws = np.random.default_rng(0).choice(values, (4000, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(np.median(values)), float(low), float(high)


def compare(kind: str, seconds: dict[str, list[float]]) -> tuple[float, float, float]:
    """The figure of a line: a share, a ratio or steps per CPU-second."""
    own, *other = (np.array(values) for values in seconds.values())
    if kind == "rate":
        return median(1 / own)
    if kind == "seconds":
        return median(own)
    return median(own / other[0] if kind == "at most" else other[0] / own)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few repetitions, to see that it works")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(parts(True)))
    options = parser.parse_args()
    limit_threads()
    versions = {name: version(name) for name in ("numpy", "gymnasium", "mujoco", "torch")} | {
        "python": platform.python_version(),
        "blas": os.environ.get("OPENBLAS_CORETYPE", "as numpy chose"),
    }
    print(f"rollouts, one core; {versions}\n")
    print("| part | what | µs per step: ours | other | figure [95 %] | promised | holds |")
    print("|---|---|---|---|---|---|---|")
    report: dict = {"versions": versions, "lines": []}
    for part, make in parts(options.quick).items():
        for what, arms, kind, promise in make() if not options.only or part in options.only else []:
            seconds = measure(arms, 3 if options.quick else 25)
            value, low, high = compare(kind, seconds)
            is_limit = kind in ("at most", "seconds")
            holds = value <= promise if is_limit else value >= promise
            times = [f"{np.median(values) * 1e6:.2f}" for values in seconds.values()] + [""]
            digits = ".0f" if kind == "rate" else ".2f"
            figure = f"{value:{digits}} [{low:{digits}}, {high:{digits}}]"
            bound = f"{'<=' if is_limit else '>='} {promise:{digits}}"
            print(
                f"| {part} | {what} | {times[0]} | {times[1]} | {figure} | {bound} | {'yes' if holds else '**no**'} |",
                flush=True,
            )
            report["lines"].append(
                {
                    "part": part,
                    "what": what,
                    "kind": kind,
                    "promise": promise,
                    "figure": [value, low, high],
                    "holds": holds,
                    "seconds": seconds,
                }
            )
    if options.json:
        options.json.write_text(json.dumps(report))


if __name__ == "__main__":
    main()
