"""`Life`: a policy that acts in an environment and learns from what it sees. Evaluation and deployment live it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ssm_metarl.adaptation.test_time_adaptation import AdaptationConfig, Adapter
from ssm_metarl.config import Strategy, TrainConfig
from ssm_metarl.core.policy import Policy
from ssm_metarl.env_runner.normalizer import Normalizer
from ssm_metarl.env_runner.rollout import collect
from ssm_metarl.env_runner.vector import MetaVectorEnv
from ssm_metarl.meta_rl.advantages import make_batch
from ssm_metarl.types import Rollout, Statistics

ONLINE_SHARE = 0.1
"""Strategy ``online`` goes this share of ``inner.lr`` by default: its steps add up without end."""


def adaptation_config(config: TrainConfig, strategy: Strategy) -> AdaptationConfig:
    """The settings of an `Adapter` for a policy of this run.

    ``meta`` takes the inner loop's steps as meta-training did: its step size, and no guards that it did not have.
    """
    adapter, is_meta = config.adapter, strategy == "meta"
    return AdaptationConfig(
        lr=adapter.lr or config.inner.lr * (1.0 if is_meta else ONLINE_SHARE),
        max_steps_per_call=adapter.max_steps_per_call,
        max_grad_norm=None if is_meta else adapter.max_grad_norm,
        trust_region=None if is_meta else adapter.trust_region,
        parameters=adapter.parameters,
        num_full_steps=config.inner.num_steps if is_meta else None,
        false_alarm_rate=adapter.false_alarm_rate,
    )


class Life:
    """A policy and its `Adapter`: `play` a rollout, `learn` from it, and so on.

    Args:
        policy: holds the meta-parameters; adapted in place.
        config: of the run that made it.
        strategy: None: ``adapter.strategy``.
        statistics: what its training has seen, if something is normalised.

    Example::

        life = Life(policy, config, "meta")
        for _ in range(5):
            rollout = life.play(vector, family.horizon, rng)
            print(rollout.mean_return, life.learn(rollout)["steps"])
    """

    def __init__(
        self,
        policy: Policy,
        config: TrainConfig,
        strategy: Strategy | None = None,
        statistics: Statistics | None = None,
    ) -> None:
        strategy = strategy or config.adapter.strategy
        self.policy, self._config, self.normalizer = policy, config, Normalizer(config, statistics)
        self.adapter = Adapter(policy, adaptation_config(config, strategy), strategy)

    def play(self, vector: MetaVectorEnv, horizon: int, rng: np.random.Generator) -> Rollout:
        """One episode in each row of ``vector`` under the present parameters; see `collect`."""
        return collect(vector, self.policy.fold(), horizon, self._config.policy.inputs, rng, self.normalizer)

    def learn(self, rollout: Rollout, task_id: object = None) -> dict[str, Any]:
        """Observes and adapts. Returns what `Adapter.adapt` does, and ``new_task`` (a cause, or None).

        Args:
            rollout: the last one that was played.
            task_id: announces a task; None: nobody says which task this is.
        """
        valid_TB = rollout.mask_TB > 0
        context = {
            "return": rollout.return_B,
            "observations": rollout.observation_TBO[valid_TB],
            "distribution": self.policy.distribution(torch.from_numpy(rollout.dist_TBD[valid_TB])),
            **({} if task_id is None else {"task_id": task_id}),
        }
        record = self.adapter.observe(context)
        info = self.adapter.adapt(make_batch(rollout, self._config.advantage))
        return {**info, "new_task": record.get("cause")}
