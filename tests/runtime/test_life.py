import numpy as np
import pytest
import torch

from ssm_metarl.config import load_config
from ssm_metarl.core.policy import Policy
from ssm_metarl.env_runner.rollout import collect
from ssm_metarl.meta_rl.advantages import make_batch
from ssm_metarl.meta_rl.meta_maml import inner_step
from ssm_metarl.meta_rl.objectives import as_tensors, surrogate
from ssm_metarl.runtime.driver import MetaTrainer
from ssm_metarl.runtime.held_out import evaluate
from ssm_metarl.runtime.life import Life, adaptation_config
from ssm_metarl.runtime.pool import LocalPool
from ssm_metarl.runtime.worker import TaskWorker, make_policy
from ssm_metarl.types import Stream, TaskSpec, make_rng

SMALL = {"env.horizon": 8, "env.episodes_per_task": 6, "policy.hidden_dim": 8, "workers.num_workers": 0}


@pytest.fixture
def config(tmp_path):
    return load_config(None, {**SMALL, "run.dir": str(tmp_path), "inner.lr": 0.3})


def make_spec(config, family, strategy="meta", num_steps=3):
    [task] = family.tasks("test", 1)
    return TaskSpec(config.seed, Stream.EVALUATE, 0, 5, task, num_steps, strategy)


def test_meta_is_the_inner_loop_of_training(config):
    """By hand: steps of inner.lr, as far as meta-training went, and half of that beyond; each on a fresh rollout."""
    trainer, worker = MetaTrainer(config), TaskWorker(config)
    spec = make_spec(config, trainer.family)
    policy, rng = make_policy(trainer.family, config), spec.rng()
    params, returns = policy.from_vector(trainer.params_P), []
    vector = trainer.family.make_vector(6)
    vector.set_tasks(spec.task)
    for k in range(4):
        rollout = collect(vector, policy.fold(params), 8, config.policy.inputs, rng)
        returns.append(rollout.mean_return)
        batch = as_tensors(make_batch(rollout, config.advantage))
        dist = torch.func.functional_call(policy, params, (batch.input_TBI,))
        logp_TB = policy.distribution(dist).log_prob(batch.action_TBA)
        loss = -surrogate(logp_TB, batch.logp_TB, batch.advantage_TB, batch.mask_TB, "lvc")
        params = inner_step(loss, params, 0.3 if k < 1 else 0.15, first_order=True)
        params = {name: value.detach().requires_grad_() for name, value in params.items()}
    found = worker.evaluate(trainer.shared, spec)
    assert found.returns == tuple(returns) and found.metrics["skipped"] == 0
    assert len(set(returns)) == 4


@pytest.mark.parametrize("strategy", ["none", "online", "meta"])
def test_the_result_of_a_spec_does_not_depend_on_what_the_worker_did_before(config, strategy):
    trainer, worker = MetaTrainer(config), TaskWorker(config)
    spec = make_spec(config, trainer.family, strategy)
    first = worker.evaluate(trainer.shared, spec)
    for other in ("meta", "online"):
        worker.evaluate(trainer.shared, make_spec(config, trainer.family, other))
    worker.adapt_and_collect(trainer.shared, spec)
    assert worker.evaluate(trainer.shared, spec).returns == first.returns
    assert TaskWorker(config).evaluate(trainer.shared, spec).returns == first.returns


def test_strategies_meet_the_same_noise_until_they_adapt(config):
    trainer, worker = MetaTrainer(config), TaskWorker(config)
    found = {name: worker.evaluate(trainer.shared, make_spec(config, trainer.family, name)).returns
             for name in ("none", "online", "meta")}  # fmt: skip
    assert len({returns[0] for returns in found.values()}) == 1
    assert len({returns[1] for returns in found.values()}) == 3


def test_none_leaves_the_policy_as_it_is(config):
    trainer, worker = MetaTrainer(config), TaskWorker(config)
    worker.evaluate(trainer.shared, make_spec(config, trainer.family, "none"))
    np.testing.assert_array_equal(worker.policy.to_vector(), trainer.params_P)


def live(config, strategy="meta"):
    trainer = MetaTrainer(config)
    policy = make_policy(trainer.family, config)
    vector = trainer.family.make_vector(6)
    vector.set_tasks(trainer.family.tasks("test", 1)[0])
    return Life(policy, config, strategy), vector, make_rng(0, Stream.EVALUATE, 0, 0)


def test_a_life_tells_what_it_observed(config):
    life, vector, rng = live(config)
    info = life.learn(life.play(vector, 8, rng))
    assert info["steps"] == 1 and info["new_task"] is None
    [record] = life.adapter.history
    assert record["return"] < 0 and record["shift"] == 0.0 and record["new_task"] is False
    assert record["entropy"] == pytest.approx(2 * (-0.5 + 0.5 * np.log(2 * np.pi * np.e)), rel=1e-5)


def test_a_task_that_nobody_announces_is_found_and_begins_at_the_meta_parameters(config):
    """The goal jumps far away; the rollout that told it is of the old parameters, and teaches nothing."""
    life, vector, rng = live(config)
    meta_P = life.policy.to_vector()
    for _ in range(4):
        assert life.learn(life.play(vector, 8, rng))["new_task"] is None
    assert life.adapter.num_steps == 4
    vector.set_tasks({"goal_x": 40.0, "goal_y": 0.0})
    info = life.learn(life.play(vector, 8, rng))
    assert info["new_task"] == "the return has fallen"
    assert "other parameters" in info["skipped"] and info["steps"] == 0
    np.testing.assert_array_equal(life.policy.to_vector(), meta_P)
    assert life.learn(life.play(vector, 8, rng))["steps"] == 1


def test_the_settings_of_the_adapter_reach_it(config):
    meta = adaptation_config(config, "meta")
    assert (meta.lr, meta.num_full_steps, meta.max_grad_norm, meta.trust_region) == (0.3, 1, None, None)
    online = adaptation_config(config, "online")
    assert online.lr == pytest.approx(0.03) and online.trust_region == 1.0 and online.num_full_steps is None
    explicit = config.override({"adapter.lr": 0.7, "adapter.parameters": ["log_std"], "adapter.max_steps_per_call": 2})
    for strategy in ("online", "meta"):
        found = adaptation_config(explicit, strategy)
        assert (found.lr, found.parameters, found.max_steps_per_call) == (0.7, ("log_std",), 2)


def test_only_the_named_parameters_of_a_policy_adapt(config):
    life, vector, rng = live(config.override({"adapter.parameters": ["log_std"]}))
    before = {name: param.detach().clone() for name, param in life.policy.named_parameters()}
    life.learn(life.play(vector, 8, rng))
    changed = {name for name, param in life.policy.named_parameters() if not torch.equal(param, before[name])}
    assert changed == {"log_std"} and isinstance(life.policy, Policy)


def test_success_rates_are_those_of_the_rollouts(config, monkeypatch):
    trainer, worker = MetaTrainer(config), TaskWorker(config)
    spec = make_spec(config, trainer.family)
    assert worker.evaluate(trainer.shared, spec).successes == ()
    step = type(worker.vector).step

    def step_that_knows(self, actions):
        *values, info = step(self, actions)
        return *values, {**info, "success": np.array([True, False, False])[np.arange(6) % 3]}

    monkeypatch.setattr(type(worker.vector), "step", step_that_knows)
    assert worker.evaluate(trainer.shared, spec).successes == pytest.approx([1 / 3] * 4)
    evaluation = evaluate(LocalPool(config, print), trainer.family, config, trainer.shared, "test", 2, ("none",))
    assert set(evaluation.successes) == {"none", "meta"}
    np.testing.assert_allclose(evaluation.successes["meta"], np.full((40, 3), 1 / 3))
