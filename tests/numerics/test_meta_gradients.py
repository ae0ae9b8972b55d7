"""Meta-gradients against finite differences in float64, for every core and for one and three inner steps."""

import numpy as np
import pytest
import torch
from torch.func import functional_call

from ssm_metarl.config import load_config
from ssm_metarl.core.policy import build_policy
from ssm_metarl.meta_rl.meta_maml import MetaMAML, inner_step
from ssm_metarl.meta_rl.objectives import as_tensors, clipped_surrogate, meta_loss, surrogate
from ssm_metarl.types import Batch

T, B, INPUTS, ACTIONS = 5, 3, 2, 2
CORES = ("ssm", "lti", "gru", "mlp")


def make_problem(core, num_steps, discrete=False, **overrides):
    """A small policy in float64 with parameters of ordinary size, and one synthetic batch per rollout."""
    settings = {"policy.core": core, "policy.hidden_dim": 4, "inner.num_steps": num_steps, "inner.lr": 0.1, **overrides}
    config = load_config(None, settings)
    policy = build_policy(INPUTS, ACTIONS, discrete, config.policy, seed=0).double()
    rng = np.random.default_rng(7)
    params = {
        name: torch.from_numpy(rng.normal(0, 0.5, param.shape)).requires_grad_()
        for name, param in policy.named_parameters()
    }
    return config, policy, params, [make_batch(rng, policy, params, discrete) for _ in range(num_steps + 1)]


def make_batch(rng, policy, params, discrete):
    inputs = rng.normal(size=(T, B, INPUTS))
    with torch.no_grad():
        dist = functional_call(policy, params, (torch.from_numpy(inputs),))
        mean, log_std = dist.numpy()[..., :ACTIONS], dist.numpy()[..., ACTIONS:]
        action = (
            rng.integers(ACTIONS, size=(T, B)) if discrete else mean + np.exp(log_std) * rng.normal(size=mean.shape)
        )
        # A little off the collecting policy, so that ratios are not all one.
        logp = policy.distribution(dist).log_prob(torch.from_numpy(action)) + 0.05 * torch.from_numpy(
            rng.normal(size=(T, B))
        )
    mask = np.ones((T, B))
    mask[3:, 1] = 0.0
    advantage = rng.normal(size=(T, B)) * mask
    return Batch(inputs, action, dist.numpy(), logp.numpy(), advantage, mask)


def flat(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def finite_differences(function, params, step=1e-6):
    """Central differences of ``function(params) -> scalar`` in every entry of ``params``, flattened."""
    slopes = []
    for name, param in params.items():
        for index in range(param.numel()):
            values = []
            for sign in (1.0, -1.0):
                moved = param.detach().clone()
                moved.view(-1)[index] += sign * step
                values.append(function({**params, name: moved.requires_grad_()}).item())
            slopes.append((values[0] - values[1]) / (2 * step))
    return torch.tensor(slopes, dtype=torch.float64)


def relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def assert_meta_gradient(config, policy, params, batches):
    def loss(at):
        return meta_loss(policy, at, lambda k, _: batches[k], config)

    gradients = torch.autograd.grad(loss(params), list(params.values()), allow_unused=True, materialize_grads=True)
    expected = finite_differences(loss, params)
    assert expected.norm() > 1e-3, "a gradient of zero would prove nothing"
    assert relative_error(flat(gradients), expected) <= 1e-6


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("core", CORES)
def test_second_order_equals_finite_differences_in_the_meta_parameters(core, num_steps):
    assert_meta_gradient(*make_problem(core, num_steps, algorithm="promp", **{"outer.kl_penalty": 0.1}))


@pytest.mark.parametrize("estimator", ["dice", "lvc", "naive"])
@pytest.mark.parametrize("algorithm", ["maml", "promp"])
def test_every_estimator_and_preset_has_the_gradient_of_its_loss(algorithm, estimator):
    assert_meta_gradient(*make_problem("ssm", 1, algorithm=algorithm, **{"inner.estimator": estimator}))


def test_discrete_actions_have_the_same_gradients():
    assert_meta_gradient(*make_problem("ssm", 1, discrete=True, algorithm="promp"))


def test_without_an_inner_loop_the_gradient_is_the_policy_gradient():
    assert_meta_gradient(*make_problem("ssm", 0, algorithm="maml"))


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("core", CORES)
def test_first_order_equals_finite_differences_in_the_adapted_parameters(core, num_steps):
    config, policy, params, batches = make_problem(core, num_steps, algorithm="fomaml")
    loss = meta_loss(policy, params, lambda k, _: batches[k], config)
    gradients = torch.autograd.grad(loss, list(params.values()), allow_unused=True, materialize_grads=True)
    adapted = _adapt_by_hand(config, policy, params, batches)
    expected = finite_differences(lambda at: _outer_by_hand(policy, at, batches[-1]), adapted)
    assert relative_error(flat(gradients), expected) <= 1e-6


def test_first_and_second_order_differ():
    gradients = []
    for algorithm in ("maml", "fomaml"):
        config, policy, params, batches = make_problem("ssm", 1, algorithm=algorithm)
        loss = meta_loss(policy, params, lambda k, _, batches=batches: batches[k], config)
        gradients.append(flat(torch.autograd.grad(loss, list(params.values()))))
    assert relative_error(gradients[1], gradients[0]) > 1e-3


def _adapt_by_hand(config, policy, params, batches):
    adapted = dict(params)
    for batch in batches[:-1]:
        tensors = as_tensors(batch)
        logp = policy.distribution(functional_call(policy, adapted, (tensors.input_TBI,))).log_prob(tensors.action_TBA)
        loss = -((logp - tensors.logp_TB).exp() * tensors.advantage_TB * tensors.mask_TB).sum() / tensors.mask_TB.sum()
        gradients = torch.autograd.grad(loss, list(adapted.values()))
        adapted = {
            name: (value - config.inner.lr * gradient).detach().requires_grad_()
            for (name, value), gradient in zip(adapted.items(), gradients, strict=True)
        }
    return adapted


def _outer_by_hand(policy, adapted, batch):
    tensors = as_tensors(batch)
    logp = policy.distribution(functional_call(policy, adapted, (tensors.input_TBI,))).log_prob(tensors.action_TBA)
    return -((logp - tensors.logp_TB).exp() * tensors.advantage_TB * tensors.mask_TB).sum() / tensors.mask_TB.sum()


@pytest.mark.parametrize("algorithm", ["maml", "promp"])
def test_the_outer_loss_is_taken_on_the_query_rollout(algorithm):
    """RLlib's MAML once judged the support rollout: with a query rollout of zero advantage the loss must vanish, not so
    with support."""
    config, policy, params, (support, query) = make_problem("ssm", 1, algorithm=algorithm, **{"outer.kl_penalty": 0.0})
    silent = Batch(**{**vars(query), "advantage_TB": np.zeros_like(query.advantage_TB)})
    loss = meta_loss(policy, params, lambda k, _: (support, silent)[k], config)
    assert loss.item() == 0.0
    mute = Batch(**{**vars(support), "advantage_TB": np.zeros_like(support.advantage_TB)})
    assert meta_loss(policy, params, lambda k, _: (mute, query)[k], config).item() != 0.0


def test_the_query_rollout_is_collected_under_the_adapted_parameters():
    config, policy, params, batches = make_problem("ssm", 2, algorithm="maml")
    asked = []

    def source(k, at):
        asked.append((k, flat(at.values()).detach().clone()))
        return batches[k]

    meta_loss(policy, params, source, config)
    assert [k for k, _ in asked] == [0, 1, 2]
    assert torch.equal(asked[0][1], flat(params.values()).detach())
    expected = _adapt_by_hand(config, policy, params, batches)
    torch.testing.assert_close(asked[2][1], flat(expected.values()).detach(), rtol=1e-12, atol=1e-12)


def test_the_penalty_is_the_divergence_from_the_collecting_policy_before_adaptation():
    config, policy, params, batches = make_problem("ssm", 1, algorithm="promp", **{"outer.kl_penalty": 1e3})
    without = load_config(None, {**_dotted(config), "outer.kl_penalty": 0.0})
    source = lambda k, _: batches[k]  # noqa: E731
    # The batches were collected under params: no divergence there, and some elsewhere.
    assert abs(meta_loss(policy, params, source, config) - meta_loss(policy, params, source, without)) < 1e-9
    moved = {name: (value + 0.1).detach().requires_grad_() for name, value in params.items()}
    penalty = (meta_loss(policy, moved, source, config) - meta_loss(policy, moved, source, without)).item() / 1e3
    tensors = as_tensors(batches[0])
    old = policy.distribution(tensors.dist_TBD)
    new = policy.distribution(functional_call(policy, moved, (tensors.input_TBI,)))
    divergence = (torch.distributions.kl_divergence(old, new) * tensors.mask_TB).sum() / tensors.mask_TB.sum()
    assert penalty == pytest.approx(divergence.item(), rel=1e-9)


def _dotted(config):
    return {
        "algorithm": config.algorithm,
        "policy.hidden_dim": config.policy.hidden_dim,
        "inner.num_steps": config.inner.num_steps,
        "inner.lr": config.inner.lr,
    }


def test_clipping_closes_the_gradient_outside_the_interval():
    logp = torch.tensor([[0.5, -0.5, 0.5, -0.5, 0.0]], dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor([[1.0, 1.0, -1.0, -1.0, 1.0]], dtype=torch.float64)
    old, mask = torch.zeros_like(advantage), torch.ones_like(advantage)
    (slope,) = torch.autograd.grad(clipped_surrogate(logp, old, advantage, mask, 0.3), logp)
    expected = torch.tensor([[0.0, np.exp(-0.5), -np.exp(0.5), 0.0, 1.0]], dtype=torch.float64) / 5
    torch.testing.assert_close(slope, expected)


def test_masked_steps_do_not_matter():
    rng = np.random.default_rng(0)
    logp, old, advantage = (torch.from_numpy(rng.normal(size=(4, 2))) for _ in range(3))
    mask = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    for estimator in ("dice", "lvc", "naive"):
        value = surrogate(logp, old, advantage, mask, estimator)
        other = surrogate(logp + 9 * (1 - mask), old, advantage - 5 * (1 - mask), mask, estimator)
        assert value == pytest.approx(other.item(), rel=1e-12)


@pytest.mark.parametrize("num_inner_steps", [1, 3])
@pytest.mark.parametrize("first_order", [False, True])
def test_meta_maml_equals_finite_differences(first_order, num_inner_steps):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)).double()
    maml = MetaMAML(model, inner_lr=0.2, outer_lr=0.01, first_order=first_order, num_inner_steps=num_inner_steps)
    sx, sy, qx, qy = (torch.randn(6, width, dtype=torch.float64) for width in (2, 1, 2, 1))
    maml.outer_loop(qx, qy, maml.inner_loop(sx, sy)).backward()
    found = flat([param.grad for param in model.parameters()])

    def full(at):
        params = at
        for _ in range(num_inner_steps):
            params = inner_step(maml.loss_fn(functional_call(model, params, (sx,)), sy), params, 0.2)
        return maml.outer_loop(qx, qy, params)

    if first_order:
        adapted = {name: value.detach().requires_grad_() for name, value in maml.inner_loop(sx, sy).items()}
        expected = finite_differences(lambda at: maml.outer_loop(qx, qy, at), adapted)
    else:
        expected = finite_differences(full, dict(model.named_parameters()))
    assert relative_error(found, expected) <= 1e-6
