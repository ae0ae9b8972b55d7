"""`TaskWorker`: one environment, one policy, the work on one task. A plain class; a pool may wrap it into an actor."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence

import numpy as np
import torch

from ssm_metarl.config import TrainConfig
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.env_runner.normalizer import Normalizer, gather
from ssm_metarl.env_runner.rollout import collect, input_dim
from ssm_metarl.env_runner.tasks import TaskError, TaskFamily, make_family
from ssm_metarl.meta_rl.advantages import make_batch
from ssm_metarl.meta_rl.meta_maml import Params
from ssm_metarl.meta_rl.objectives import BatchSource, meta_loss
from ssm_metarl.runtime.life import Life
from ssm_metarl.runtime.process import limit_threads
from ssm_metarl.types import Batch, Rollout, SharedState, TaskResult, TaskSpec


def make_policy(family: TaskFamily, config: TrainConfig) -> Policy:
    """The policy of a run with its initial parameters: a function of the configuration alone."""
    inputs = input_dim(family, config.policy.inputs)
    return build_policy(inputs, family.action_dim, family.discrete, config.policy, config.seed)


def _successes(rollouts: Sequence[Rollout]) -> tuple[float, ...]:
    """The share of episodes that succeed; empty where the environment does not say."""
    return tuple(float(rollout.success_B.mean()) for rollout in rollouts if rollout.success_B is not None)


class TaskWorker:
    """Adapts to tasks and measures how the meta-parameters should have been.

    Nothing it returns depends on earlier calls: the result of a spec is a function of the shared state and the spec.

    Args:
        config: the run's configuration.

    Raises:
        TaskError: the environment cannot be made.
    """

    def __init__(self, config: TrainConfig) -> None:
        limit_threads()
        self.config = config
        family = make_family(config.env)
        self.horizon = family.horizon
        self.vector = family.make_vector(config.env.episodes_per_task)
        self.policy = make_policy(family, config)

    def ready(self) -> str:
        """Answers once the worker is able to work, with its process and machine."""
        return f"pid {os.getpid()} on {socket.gethostname()}"

    def adapt_and_collect(self, shared: SharedState, spec: TaskSpec) -> tuple[TaskResult, list[Batch]]:
        """First pass over a task: roll out, adapt, roll out again; the meta-gradient, and the batches for later passes.

        Costs ``(inner.num_steps + 1) * env.episodes_per_task`` episodes.
        """
        began, rng = time.perf_counter(), spec.rng()
        rollouts, batches, rollout_s = [], [], 0.0
        normalizer = Normalizer(self.config, shared.statistics)
        self.vector.set_tasks(spec.task)

        def collect_under(_: int, params: Params) -> Batch:
            nonlocal rollout_s
            started = time.perf_counter()
            policy, inputs = self.policy.fold(params), self.config.policy.inputs
            rollout = collect(self.vector, policy, self.horizon, inputs, rng, normalizer)
            rollouts.append(rollout)
            batches.append(make_batch(rollout, self.config.advantage))
            rollout_s += time.perf_counter() - started
            return batches[-1]

        loss, gradient_P = self._meta_gradient(shared, spec, collect_under)
        result = TaskResult(
            spec=spec,
            gradient_P=gradient_P,
            returns=tuple(rollout.mean_return for rollout in rollouts),
            successes=_successes(rollouts),
            num_env_steps=sum(rollout.num_steps for rollout in rollouts),
            seconds=time.perf_counter() - began,
            metrics={"meta_loss": loss, "rollout_s": rollout_s},
            statistics=gather(rollouts, self.config),
        )
        return result, batches

    def revisit(self, shared: SharedState, spec: TaskSpec, batches: list[Batch]) -> TaskResult:
        """A later pass over kept batches, under new meta-parameters; ratios are against stored log-probabilities."""
        began = time.perf_counter()
        loss, gradient_P = self._meta_gradient(shared, spec, lambda k, _: batches[k])
        seconds = time.perf_counter() - began
        return TaskResult(spec=spec, gradient_P=gradient_P, seconds=seconds, metrics={"meta_loss": loss})

    def evaluate(self, shared: SharedState, spec: TaskSpec) -> TaskResult:
        """Mean returns after k = 0 .. ``spec.num_adaptation_steps`` calls of the adapter, each on a rollout of its own.

        ``metrics["skipped"]`` counts the calls in which the adapter found a reason not to learn.
        """
        began, rng = time.perf_counter(), spec.rng()
        self.policy.load_state_dict(self.policy.from_vector(shared.params_P))
        life = Life(self.policy, self.config, spec.strategy, shared.statistics)
        self.vector.set_tasks(spec.task)
        rollouts, skipped = [life.play(self.vector, self.horizon, rng)], 0
        for _ in range(spec.num_adaptation_steps):
            skipped += life.learn(rollouts[-1], task_id=spec.task_index)["skipped"] is not None
            rollouts.append(life.play(self.vector, self.horizon, rng))
        return TaskResult(
            spec=spec,
            gradient_P=None,
            returns=tuple(rollout.mean_return for rollout in rollouts),
            successes=_successes(rollouts),
            num_env_steps=sum(rollout.num_steps for rollout in rollouts),
            seconds=time.perf_counter() - began,
            metrics={"skipped": skipped},
        )

    def _meta_gradient(self, shared: SharedState, spec: TaskSpec, source: BatchSource) -> tuple[float, np.ndarray]:
        params = self.policy.from_vector(shared.params_P)
        loss = meta_loss(self.policy, params, source, self.config)
        gradients = torch.autograd.grad(loss, list(params.values()), allow_unused=True, materialize_grads=True)
        gradient_P = self.policy.to_vector(dict(zip(params, gradients, strict=True)))
        if not np.isfinite(gradient_P).all():
            raise TaskError(
                f"the meta-gradient of {spec} is not finite; the usual cure is a smaller inner.lr or outer.lr"
            )
        return loss.item(), gradient_P
