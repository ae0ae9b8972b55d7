"""Cores and policies: sequences against steps, resets, memory, folding, distributions, vectors, errors."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call

from ssm_metarl.config import PolicyConfig
from ssm_metarl.core.baselines import GRU, MLP
from ssm_metarl.core.elementwise import decay_and_scale
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.core.ssm import INITIAL_DECAY, MIN_RATE, RATE, SSM

T, B, OBS, A = 12, 4, 3, 2
CORES = {
    "ssm": lambda **sizes: SSM(OBS, A, 8, **sizes),
    "lti": lambda **sizes: SSM(OBS, A, 8, core="lti", **sizes),
    "gru": lambda **sizes: GRU(OBS, A, 8, **sizes),
    "mlp": lambda **sizes: MLP(OBS, A, 8, **sizes),
}
every_core = pytest.mark.parametrize("core", CORES)
every_depth = pytest.mark.parametrize("n_layers", [1, 3])
both_kinds = pytest.mark.parametrize("discrete", [True, False], ids=["discrete", "continuous"])


def randomise(module, scale=0.4, seed=1):
    """Parameters far from their initial values, so that every one of them shows in the outputs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in module.parameters():
            param.copy_(scale * torch.randn(param.shape, generator=generator))
    return module


def make(core, n_layers=1):
    return randomise(CORES[core](n_layers=n_layers))


def make_policy(core, discrete, n_layers=1, seed=0):
    config = PolicyConfig(core=core, hidden_dim=8, num_layers=n_layers, initial_log_std=-0.5)
    return build_policy(OBS, A, discrete, config, seed)


def observations(*shape, seed=2):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_equal(actual, expected, tolerance=1e-6):
    """Equal to ``tolerance`` of the largest number."""
    scale = max([1.0, *expected.detach().abs().flatten().tolist()])
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


@every_core
@every_depth
def test_a_sequence_equals_its_steps(core, n_layers):
    model, x = make(core, n_layers), observations(B, T, OBS)
    logits, last = model(x, model.initial_state(B))
    carry, steps = model.initial_state(B), []
    for t in range(T):
        out, carry = model.step(x[:, t], carry)
        steps.append(out)
    assert logits.shape == (B, T, A)
    assert_equal(torch.stack(steps, dim=1), logits)
    assert_equal(carry, last)
    assert_equal(model(x), logits)


@every_core
@every_depth
def test_a_sequence_can_be_cut_anywhere(core, n_layers):
    model, x = make(core, n_layers), observations(B, T, OBS)
    head, carry = model(x[:, :5], model.initial_state(B))
    tail, _ = model(x[:, 5:], carry)
    assert_equal(torch.cat([head, tail], dim=1), model(x))


@every_core
@every_depth
def test_a_reset_begins_a_new_sequence_exactly(core, n_layers):
    model, x = make(core, n_layers), observations(B, T, OBS)
    resets, carry = torch.zeros(B, T), 100 * torch.ones_like(model.initial_state(B))
    resets[1, 7] = resets[2, 0] = 1
    logits, _ = model(x, carry, resets)
    from_carry, _ = model(x, carry)
    assert_equal(logits[1, 7:], model(x[1, None, 7:])[0])
    assert torch.equal(logits[2], model(x)[2])
    assert torch.equal(logits[[0, 3]], from_carry[[0, 3]]) and torch.equal(logits[1, :7], from_carry[1, :7])
    assert torch.equal(model(x, carry, resets.bool())[0], logits)
    other_past = x.clone()
    other_past[1, :7] = 1e3
    assert torch.equal(model(other_past, carry, resets)[0][1, 7:], logits[1, 7:])


@every_core
def test_a_step_resets_its_state_before_it_reads(core):
    model, x = make(core), observations(B, OBS)
    carry = torch.ones_like(model.initial_state(B))
    reset = torch.tensor([True, False, True, False])
    out, new = model.step(x, carry, reset)
    fresh, fresh_carry = model.step(x, model.initial_state(B))
    kept, kept_carry = model.step(x, carry)
    assert torch.equal(out, torch.where(reset[:, None], fresh, kept))
    assert torch.equal(new, torch.where(reset[None, :, None], fresh_carry, kept_carry))


@pytest.mark.parametrize(("core", "remembers"), [("ssm", True), ("lti", True), ("gru", True), ("mlp", False)])
def test_outputs_depend_on_the_past_alone(core, remembers):
    model, x = make(core), observations(1, T, OBS)
    changed = x.clone()
    changed[0, 4] += 1
    same = (model(x) == model(changed)).all(dim=-1)[0]
    assert same[:4].all() and not same[4]
    assert (not same[5:].any()) if remembers else same[5:].all()


@every_core
def test_rows_and_single_steps_are_independent(core):
    model, x = make(core), observations(B, OBS)
    logits = model(x)
    assert logits.shape == (B, A) and model(x[0]).shape == (A,)
    assert_equal(torch.stack([model(row) for row in x]), logits)
    assert_equal(model(x[:, None])[:, 0], logits)
    one, carry = model.step(x[0], model.initial_state(1))
    assert one.shape == (A,) and carry.shape == model.initial_state(1).shape
    assert_equal(one, logits[0])


def test_the_equations_of_the_file_are_what_is_computed():
    model, x = make("ssm").double(), observations(T, OBS).double()
    p = {name.removeprefix("layers.0."): value for name, value in model.named_parameters()}
    h, expected = torch.zeros(8).double(), []
    for o in x:
        z = p["encoder.weight"] @ o + p["encoder.bias"]
        x_t = z * torch.sigmoid(z)
        u = x_t / (x_t.square().mean() + 1e-6).sqrt()
        v, r, g = (p["inputs.weight"] @ u + p["inputs.bias"]).chunk(3)
        log_a = -8 * torch.log1p(p["lam"].exp()) * torch.sigmoid(r) - 1e-4
        h = log_a.exp() * h + (1 - (2 * log_a).exp()).sqrt() * v
        y = x_t + (p["output.weight"] @ h + p["output.bias"]) * g * torch.sigmoid(g)
        expected.append(p["head.weight"] @ y + p["head.bias"])
    assert_equal(model(x[None])[0], torch.stack(expected), 1e-12)


def test_the_lti_core_is_the_selective_one_without_selection():
    selective, lti = make("ssm"), make("lti")
    state = lti.state_dict()
    for part in ("weight", "bias"):
        v, g = state[f"layers.0.inputs.{part}"].chunk(2)
        state[f"layers.0.inputs.{part}"] = torch.cat([v, torch.zeros_like(v), g])
    selective.load_state_dict(state)
    x = observations(B, T, OBS)
    assert_equal(selective(x), lti(x))


@every_depth
def test_the_gru_is_torchs(n_layers):
    model, reference = make("gru", n_layers), torch.nn.GRU(OBS, 8, n_layers, batch_first=True)
    for i, layer in enumerate(model.layers):
        for theirs, ours in (("ih", layer.input), ("hh", layer.hidden)):
            getattr(reference, f"weight_{theirs}_l{i}").data.copy_(ours.weight)
            getattr(reference, f"bias_{theirs}_l{i}").data.copy_(ours.bias)
    x, carry = observations(B, T, OBS), torch.randn(n_layers, B, 8)
    states, last = reference(x, carry)
    logits, new = model(x, carry)
    assert_equal(logits, model.head(states))
    assert_equal(new, last)


@pytest.mark.parametrize("lam", [-1e4, -50.0, 0.0, 50.0, 1e4])
@pytest.mark.parametrize("r", [-1e4, 0.0, 1e4])
def test_the_decay_stays_below_one_for_any_parameter(lam, r):
    layer = SSM(1, 1, 1).layers[0]
    with torch.no_grad():
        layer.lam.fill_(lam)
        layer.inputs.weight.zero_()
        layer.inputs.bias.copy_(torch.tensor([0.0, r, 0.0]))
    _, h = layer(torch.zeros(1, 1, 1), torch.ones(1, 1), None)
    a = h.item()
    assert 0 <= a <= 1 - 0.9 * MIN_RATE
    if lam <= 0 and r <= 0:
        assert a > 0
    gradients = torch.autograd.grad(h.sum(), [layer.lam, layer.inputs.bias])
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_memory_is_long_to_begin_with():
    torch.manual_seed(0)
    lam = SSM(OBS, A, 1000).layers[0].lam.detach()
    a, _ = decay_and_scale(-RATE / 2 * torch.nn.functional.softplus(lam) - MIN_RATE)
    low, high = INITIAL_DECAY
    assert low * 0.999 < a.min() < low + 0.01 and high - 0.01 < a.max() < high
    assert abs(a.mean() - (low + high) / 2) < 0.005


@every_core
def test_the_first_policy_is_nearly_uniform(core):
    torch.manual_seed(0)
    assert CORES[core]()(observations(B, T, OBS)).abs().max() < 0.05


@every_core
def test_the_house_bans(core):
    banned = (torch.nn.LayerNorm, torch.nn.modules.batchnorm._BatchNorm, torch.nn.RNNBase)
    assert not any(isinstance(module, banned) for module in CORES[core]().modules())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"state": torch.zeros(2, 5)}, r"\[2, 5\].*state_dim=3.*reshape"),
        ({"state": torch.zeros(2, 2, 2, OBS)}, r"\[B, T, 3\]"),
        ({"state": torch.tensor(1.0)}, "state_dim=3"),
        ({"state": torch.zeros(2, 0, OBS)}, r"\[2, 0, 3\]"),
        ({"state": torch.zeros(2, OBS), "carry": torch.zeros(1, 3, 8)}, r"carry.*initial_state\(2\)"),
        ({"state": torch.zeros(2, 4, OBS), "resets": torch.zeros(4, 2)}, r"resets.*\[2, 4\]"),
        ({"state": torch.zeros(2, OBS), "resets": torch.zeros(2, 1)}, r"resets.*\[2\]"),
    ],
)
def test_wrong_shapes_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        make("ssm")(**arguments)


def test_step_refuses_a_sequence():
    model = make("ssm")
    with pytest.raises(ValueError, match="call forward"):
        model.step(torch.zeros(1, 2, OBS), model.initial_state(1))


@pytest.mark.parametrize("wrong", [{"state_dim": 0}, {"action_dim": -1}, {"hidden_dim": 2.5}, {"n_layers": True}])
def test_wrong_sizes_are_named(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be a positive integer"):
        SSM(**{"state_dim": 1, "action_dim": 1} | wrong)
    with pytest.raises(ValueError, match="rglru"):
        SSM(1, 1, core="mamba")


# Policies


@every_core
@both_kinds
@every_depth
def test_the_folded_step_equals_the_module(core, discrete, n_layers):
    policy = randomise(make_policy(core, discrete, n_layers))
    x, folded = observations(T, 20, OBS), policy.fold()
    carry, module_carry = folded.initial_state(20), policy.core.initial_state(20)
    for t in range(T):
        kept = carry.copy()
        means, new = folded.step(x[t].numpy(), carry)
        dist = folded.distribution(means)
        out, module_carry = policy.core.step(x[t], torch.from_numpy(carry))
        assert dist.dtype == new.dtype == np.float32 and np.array_equal(carry, kept)
        assert_equal(torch.from_numpy(dist)[:, :A], out, 1e-6 * n_layers)
        assert_equal(torch.from_numpy(new), module_carry, 1e-6 * n_layers)
        carry = new
    if not discrete:
        assert np.array_equal(dist[:, A:], policy.log_std.detach().expand(20, A).numpy())


@every_core
@both_kinds
def test_an_episode_acted_folded_is_the_episode_of_the_module(core, discrete):
    policy = make_policy(core, discrete)
    x, folded = observations(60, 5, OBS), policy.fold()
    carry, dists = folded.initial_state(5), []
    for x_BI in x.numpy():
        out, carry = folded.step(x_BI, carry)
        dists.append(folded.distribution(out))
    assert_equal(torch.from_numpy(np.stack(dists)), policy(x))


@every_core
def test_the_folded_step_is_repeatable_and_silent_for_any_parameter(core):
    policy, rng = make_policy(core, True), np.random.default_rng(0)
    for scale in (1.0, 1e3, 1e6):
        folded, again = (randomise(policy, scale).fold() for _ in range(2))
        x, carry = rng.normal(size=(3, OBS)).astype(np.float32), folded.initial_state(3) + 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            out, new = folded.step(x, carry)
        assert np.isfinite(out).all() and np.isfinite(new).all()
        assert all(map(np.array_equal, (out, new), again.step(x, carry)))


@both_kinds
def test_folding_takes_given_parameters_detaches_and_copies_them(discrete):
    policy = make_policy("ssm", discrete)
    given = {name: (2.0 * p).double() for name, p in policy.named_parameters()}
    folded, x = policy.fold(given), observations(1, 5, OBS)
    before, _ = folded.step(x[0].numpy(), folded.initial_state(5))
    expected = functional_call(policy, {name: p.float() for name, p in given.items()}, (x,))
    assert_equal(torch.from_numpy(folded.distribution(before)), expected[0])
    own = policy.fold()
    out, _ = own.step(x[0].numpy(), own.initial_state(5))
    randomise(policy)
    after, _ = own.step(x[0].numpy(), own.initial_state(5))
    assert np.array_equal(own.distribution(out), own.distribution(after))


@both_kinds
@every_core
def test_a_float64_policy_differentiates_to_second_order(core, discrete):
    policy = make_policy(core, discrete).double()
    action = torch.zeros(T, B, dtype=torch.int64) if discrete else torch.zeros(T, B, A).double()
    params = list(policy.parameters())
    loss = policy.distribution(policy(observations(T, B, OBS).double())).log_prob(action).mean()
    grads = torch.autograd.grad(loss, params, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in grads), params)
    assert all(g.dtype == torch.float64 and g.isfinite().all() for g in second)
    assert sum(g.abs().sum() for g in second) > 0


def sample(policy, out, seed=0):
    """Actions and their log-probabilities, as a rollout computes them."""
    folded = policy.fold()
    action = folded.act(out, folded.noise(np.random.default_rng(seed), len(out)))
    return action, folded.log_prob(folded.distribution(out), action)


@both_kinds
def test_log_probabilities_and_modes_are_torchs(discrete):
    policy = randomise(make_policy("mlp", discrete))
    folded, out = policy.fold(), 2 * np.random.default_rng(3).normal(size=(7, A)).astype(np.float32)
    distribution = policy.distribution(torch.from_numpy(folded.distribution(out)))
    for seed in range(20):
        action, logp = sample(policy, out, seed)
        expected = distribution.log_prob(torch.from_numpy(action)).numpy()
        assert action.dtype == (np.int64 if discrete else np.float32) and logp.dtype == np.float32
        np.testing.assert_allclose(logp, expected, rtol=0, atol=1e-5)
    mode = folded.mode(out)
    assert mode.dtype == action.dtype and mode.shape == action.shape
    assert np.array_equal(mode, distribution.mode.numpy())


@given(st.lists(st.floats(-300, 300, width=32), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_any_logits_give_a_possible_action_and_its_log_probability(logits, seed):
    policy, dist = make_policy("mlp", True), np.float32([logits] * 9)
    action, logp = sample(policy, dist, seed)
    assert ((action >= 0) & (action < len(logits))).all()
    expected = torch.log_softmax(torch.from_numpy(dist), dim=1).numpy()[np.arange(9), action]
    np.testing.assert_allclose(logp, expected, rtol=1e-5, atol=1e-5)


def test_discrete_samples_have_the_right_frequencies():
    probabilities = np.float32([0.5, 0.0, 0.2, 0.05, 0.25])
    dist = np.tile(np.log(probabilities + 1e-30), (40_000, 1))
    action, _ = sample(make_policy("mlp", True), dist)
    frequencies = np.bincount(action, minlength=5) / len(action)
    assert frequencies[1] == 0
    assert np.all(np.abs(frequencies - probabilities) <= 4 * np.sqrt(probabilities * (1 - probabilities) / len(action)))


def test_continuous_samples_have_the_right_mean_and_deviation():
    policy, mean = make_policy("mlp", False), np.linspace(1.0, -2.0, A, dtype=np.float32)
    with torch.no_grad():
        policy.log_std.copy_(torch.linspace(0.3, -1.0, A))
    action, _ = sample(policy, np.tile(mean, (40_000, 1)))
    std = np.exp(np.linspace(0.3, -1.0, A))
    np.testing.assert_array_less(np.abs(action.mean(axis=0) - mean), 4 * std / 200)
    np.testing.assert_allclose(action.std(axis=0), std, rtol=0.02)
    assert abs(np.corrcoef(action.T)[0, 1]) < 0.02


@every_core
@both_kinds
def test_vectors_go_there_and_back(core, discrete):
    policy = randomise(make_policy(core, discrete))
    vector = policy.to_vector()
    params = policy.from_vector(vector)
    assert vector.dtype == np.float32 and vector.shape == (sum(p.numel() for p in policy.parameters()),)
    assert list(params) == [name for name, _ in policy.named_parameters()]
    assert all(p.is_leaf and p.requires_grad and p.dtype == torch.float32 for p in params.values())
    assert len({p.untyped_storage().data_ptr() for p in params.values()}) == len(params)
    assert all(torch.equal(p, params[name]) for name, p in policy.named_parameters())
    assert np.array_equal(policy.to_vector(dict(reversed(params.items()))), vector)
    vector[:] = 0
    assert all(torch.equal(p, params[name]) for name, p in policy.named_parameters())
    with pytest.raises(ValueError, match=f"{len(vector)} parameters.*policy.hidden_dim"):
        policy.from_vector(vector[:-1])


@both_kinds
def test_building_depends_on_the_seed_alone(discrete):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = make_policy("ssm", discrete)
    assert torch.equal(torch.rand(3), expected)
    assert np.array_equal(first.to_vector(), make_policy("ssm", discrete).to_vector())
    assert not np.array_equal(first.to_vector(), make_policy("ssm", discrete, seed=1).to_vector())


def test_the_configuration_chooses_the_core():
    for name, kind in {"ssm": SSM, "lti": SSM, "gru": GRU, "mlp": MLP}.items():
        policy = Policy(OBS, A, False, PolicyConfig(core=name, hidden_dim=5, num_layers=2, initial_log_std=-1.0))
        assert isinstance(policy.core, kind)
        assert (policy.core.hidden_dim, policy.core.n_layers) == (5, 2)
        assert (policy.log_std == -1.0).all()
        assert policy(torch.zeros(T, B, OBS)).shape == (T, B, 2 * A)
        assert not hasattr(make_policy(name, True), "log_std")
