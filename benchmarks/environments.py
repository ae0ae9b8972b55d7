"""What chance earns in every family, and what is best: the tables of docs/environments.md.

    python benchmarks/environments.py [--only NAME ...] [--episodes 10] [--tasks 40] [--json FILE]

Actions are uniform in the Box, or over the discrete actions. For each family, and for each of its variants: the first
``--tasks`` tasks of the test split, ``--episodes`` episodes each (Meta-World: a quarter of the tasks, 2 episodes).
Intervals are 95 % bootstraps over tasks: they speak of other tasks of the family. Success is the share of episodes in
which ``info["success"]`` was true at some step. The second table is that of ``families/yardsticks.py``.
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete

from ssm_metarl.config import EnvConfig
from ssm_metarl.env_runner.families import NATIVE, yardsticks
from ssm_metarl.env_runner.family import TaskFamily
from ssm_metarl.env_runner.rollout import collect
from ssm_metarl.env_runner.tasks import make_family
from ssm_metarl.evaluation.statistics import bootstrap_mean
from ssm_metarl.runtime.process import limit_threads


class RandomPolicy:
    """Acts uniformly, as `collect` wants a policy."""

    def __init__(self, family: TaskFamily) -> None:
        self.discrete, self.action_dim = family.discrete, family.action_dim

    def initial_state(self, batch_size: int) -> np.ndarray:
        return np.zeros((1, batch_size, 1), np.float32)

    def step(self, input_BI: np.ndarray, carry: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((len(input_BI), self.action_dim), np.float32), carry

    def noise(self, rng: np.random.Generator, *shape: int) -> np.ndarray:
        if self.discrete:
            return rng.integers(self.action_dim, size=shape)
        return rng.uniform(-1, 1, (*shape, self.action_dim)).astype(np.float32)

    def act(self, out_BA: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return noise

    def distribution(self, out_TBA: np.ndarray) -> np.ndarray:
        return out_TBA

    def log_prob(self, dist_TBD: np.ndarray, action_TBA: np.ndarray) -> np.ndarray:
        return np.zeros(dist_TBD.shape[:2], np.float32)


def measure(env_id: str, variant: str | None, num_tasks: int, episodes: int) -> dict:
    """One line of the table."""
    family = make_family(EnvConfig(id=env_id, variant=variant))
    vector, policy = family.make_vector(episodes), RandomPolicy(family)
    returns_K, successes_K = [], []
    for index, task in enumerate(family.tasks("test", num_tasks)):
        vector.set_tasks(task)
        rollout = collect(vector, policy, family.horizon, ("observation",), np.random.default_rng(index))
        returns_K.append(rollout.mean_return)
        if rollout.success_B is not None:
            successes_K.append(float(rollout.success_B.mean()))
    vector.close()
    found = {"id": env_id, "variant": variant, "horizon": family.horizon, "observation": family.observation_dim}
    found["action"] = (
        f"{family.action_dim} discrete" if isinstance(family.action_space, Discrete) else f"{family.action_dim}"
    )
    found |= {"tasks": num_tasks, "episodes": episodes, "return": list(bootstrap_mean(np.array([returns_K])))}
    return found | {"success": float(np.mean(successes_K)) if successes_K else None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", help="parts of ids")
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    limit_threads()
    versions = {name: version(name) for name in ("numpy", "gymnasium", "mujoco", "metaworld")}
    print(f"random actions; {versions | {'python': platform.python_version()}}\n")
    print("| id, variant | horizon | observation | action | return [95 %] | success | tasks x episodes |")
    print("|---|---|---|---|---|---|---|")
    lines = []
    for env_id in sorted(key for key in gymnasium.registry if key.startswith("ssm_metarl/")):
        if options.only and not any(part in env_id for part in options.only):
            continue
        variants = list(NATIVE[env_id].variants) if env_id in NATIVE else [None]
        for variant in variants if len(variants) > 1 else [None]:
            slow = "/ML" in env_id
            num_tasks, episodes = (max(1, options.tasks // 4), 2) if slow else (options.tasks, options.episodes)
            found = measure(env_id, variant, num_tasks, episodes)
            mean, low, high = found["return"]
            name = env_id.removeprefix("ssm_metarl/") + (f", {variant}" if variant else "")
            success = "" if found["success"] is None else f"{found['success']:.0%}"
            cells = (
                name,
                found["horizon"],
                found["observation"],
                found["action"],
                f"{mean:.2f} [{low:.2f}, {high:.2f}]",
            )
            print(f"| {' | '.join(map(str, cells))} | {success} | {num_tasks} x {episodes} |", flush=True)
            lines.append(found)
    if not options.only:
        print("\n| family, variant | who | return | |")
        print("|---|---|---|---|")
        for one in yardsticks.table():
            print(f"| {one.family} | {one.agent} | {one.value:.2f} | {one.kind} |")
    if options.json:
        options.json.write_text(json.dumps({"versions": versions, "lines": lines}), encoding="utf-8")


if __name__ == "__main__":
    main()
