import copy

import pytest
import torch
import torch.nn.functional as F

from ssm_metarl.adaptation.test_time_adaptation import AdaptationConfig, Adapter


@pytest.fixture
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))


def make_batch(rows=16):
    torch.manual_seed(1)
    return {"observations": torch.randn(rows, 3), "targets": torch.randn(rows, 2)}


def same(model, other):
    return all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_none_leaves_parameters_bit_identical_and_reports_the_loss(model):
    before, batch = copy.deepcopy(model), make_batch()
    info = Adapter(model, AdaptationConfig(lr=1.0, max_steps_per_call=9), "none").adapt(batch, F.mse_loss)
    assert same(model, before)
    expected = F.mse_loss(model(batch["observations"]), batch["targets"]).item()
    assert info["loss"] == info["loss_before"] == pytest.approx(expected)
    assert (info["steps"], info["grad_norm"], info["param_change"], info["skipped"]) == (0, 0.0, 0.0, None)


def test_online_takes_the_gradient_steps_that_sgd_takes_and_they_accumulate(model):
    reference, batch = copy.deepcopy(model), make_batch()
    adapter = Adapter(model, AdaptationConfig(lr=0.1, max_steps_per_call=3), "online")
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    for _ in range(2):
        start = [p.detach().clone() for p in reference.parameters()]
        for _ in range(3):
            optimizer.zero_grad()
            F.mse_loss(reference(batch["observations"]), batch["targets"]).backward()
            optimizer.step()
        info = adapter.adapt(batch, F.mse_loss)
        for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs)
        moved = sum(((a - b) ** 2).sum() for a, b in zip(reference.parameters(), start, strict=True)) ** 0.5
        assert info["param_change"] == pytest.approx(moved.item(), rel=1e-4)
        norm = sum((p.grad**2).sum() for p in reference.parameters()) ** 0.5
        assert info["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
        assert info["steps"] == 3 and info["loss"] < info["loss_before"]
        assert info["loss"] == pytest.approx(F.mse_loss(model(batch["observations"]), batch["targets"]).item())


def test_meta_starts_every_task_from_the_meta_parameters(model):
    before, batch = copy.deepcopy(model), make_batch()
    adapter = Adapter(model, AdaptationConfig(lr=0.1), "meta")
    adapter.observe({"task_id": 1})
    adapter.adapt(batch, F.mse_loss)
    once = copy.deepcopy(model)
    adapter.observe({"task_id": 1})
    assert same(model, once), "the same task goes on"
    adapter.observe({"task_id": 2})
    assert same(model, before)
    adapter.adapt(batch, F.mse_loss)
    assert same(model, once)


def test_meta_adapts_without_any_context(model):
    before = copy.deepcopy(model)
    info = Adapter(model, AdaptationConfig(lr=0.1), "meta").adapt(make_batch(), F.mse_loss)
    assert info["steps"] == 1 and not same(model, before)


def test_snapshot_restore_reset(model):
    adapter, before = Adapter(model, AdaptationConfig(lr=0.1), "online"), copy.deepcopy(model)
    adapter.adapt(make_batch(), F.mse_loss)
    after, snapshot = copy.deepcopy(model), adapter.snapshot()
    adapter.reset()
    assert same(model, before)
    adapter.restore(snapshot)
    assert same(model, after)
    with pytest.raises(ValueError, match="not those of the target"):
        adapter.restore({"0.weight": snapshot["0.weight"]})


def test_integer_targets_work_with_cross_entropy(model):
    batch = {"observations": torch.randn(5, 3), "targets": torch.tensor([0, 1, 1, 0, 1])}
    info = Adapter(model, AdaptationConfig(lr=0.1), "online").adapt(batch, F.cross_entropy)
    assert info["loss"] < info["loss_before"]


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ([1, 2], "takes a mapping"),
        ({"observations": torch.ones(2, 3)}, "no 'targets'"),
        ({"observations": [[1.0] * 3], "targets": torch.ones(1, 2)}, "must be a torch.Tensor"),
        ({"observations": torch.ones(0, 3), "targets": torch.ones(0, 2)}, "empty"),
        ({"observations": torch.ones(4, 3), "targets": torch.ones(4, 1)}, "broadcast"),
        ({"observations": torch.ones(4, 3), "targets": torch.ones(1, 2)}, "broadcast"),
        ({"observations": torch.ones(4, 3), "targets": torch.ones(3, dtype=torch.long)}, "do not pair"),
    ],
)
@pytest.mark.parametrize("strategy", ["none", "online", "meta"])
def test_malformed_input_raises_and_changes_nothing(model, batch, words, strategy):
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=words):
        Adapter(model, AdaptationConfig(), strategy).adapt(batch, F.mse_loss)
    assert same(model, before)


@pytest.mark.parametrize("strategy", ["none", "online", "meta"])
@pytest.mark.parametrize("key", ["observations", "targets"])
def test_non_finite_input_changes_nothing_and_says_so(model, strategy, key):
    before, batch = copy.deepcopy(model), make_batch()
    batch[key][0, 0] = float("nan")
    info = Adapter(model, AdaptationConfig(), strategy).adapt(batch, F.mse_loss)
    assert same(model, before) and info["steps"] == 0 and "non-finite" in info["skipped"]


def test_a_non_finite_gradient_changes_nothing_and_says_so(model):
    before = copy.deepcopy(model)
    # sqrt at zero: a finite loss with an infinite slope.
    info = Adapter(model, AdaptationConfig(), "online").adapt(
        make_batch(), lambda p, t: (p - p.detach()).abs().sum().sqrt()
    )
    assert same(model, before) and info["steps"] == 0 and "gradient" in info["skipped"]


def test_a_step_into_a_non_finite_loss_is_not_taken(model):
    before = copy.deepcopy(model)
    info = Adapter(model, AdaptationConfig(lr=1e30), "online").adapt(make_batch(), F.mse_loss)
    assert same(model, before) and info["steps"] == 0 and "non-finite" in info["skipped"]


def test_unknown_names_and_bounds_are_errors(model):
    with pytest.raises(ValueError, match="none, online, meta"):
        Adapter(model, AdaptationConfig(), "onlin")
    for wrong in ({"lr": 0.0}, {"lr": float("nan")}, {"max_steps_per_call": 0}):
        with pytest.raises(ValueError, match="AdaptationConfig"):
            AdaptationConfig(**wrong)
    with pytest.raises(ValueError, match="mapping"):
        Adapter(model, AdaptationConfig()).observe([1])


def test_contexts_are_kept(model):
    adapter = Adapter(model, AdaptationConfig())
    adapter.observe({"task_id": 3, "domain": "a"})
    assert list(adapter.history) == [{"task_id": 3, "domain": "a"}]


def test_frozen_parameters_stay(model):
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model)
    Adapter(model, AdaptationConfig(lr=0.1), "online").adapt(make_batch(), F.mse_loss)
    assert torch.equal(model[0].weight, before[0].weight) and not torch.equal(model[2].weight, before[2].weight)
    assert not model[0].weight.requires_grad
