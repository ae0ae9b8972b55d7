import copy

import pytest
import torch

from ssm_metarl.meta_rl.meta_maml import MetaMAML, inner_step


@pytest.fixture
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))


def make_task(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6, width, generator=generator) for width in (3, 2, 3, 2)]


def test_one_inner_step_by_hand():
    theta = torch.tensor([1.0, 2.0], requires_grad=True)
    adapted = inner_step((theta**3).sum(), {"theta": theta}, 0.1)
    torch.testing.assert_close(adapted["theta"], torch.tensor([1 - 0.3, 2 - 1.2]))
    # d theta' / d theta = 1 - lr * 6 theta at second order, 1 at first order.
    (slope,) = torch.autograd.grad(adapted["theta"].sum(), theta)
    torch.testing.assert_close(slope, 1 - 0.6 * theta.detach())
    first = inner_step((theta**3).sum(), {"theta": theta}, 0.1, first_order=True)
    (slope,) = torch.autograd.grad(first["theta"].sum(), theta)
    torch.testing.assert_close(slope, torch.ones(2))


def test_unused_and_frozen_parameters_pass_through():
    used, unused, frozen = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True), torch.ones(2)
    params = {"used": used, "unused": unused, "frozen": frozen}
    adapted = inner_step((used * frozen).sum(), params, 0.5)
    assert adapted["unused"] is unused and adapted["frozen"] is frozen
    assert list(adapted) == list(params)


def test_the_documented_loop_never_adds_up_gradients_of_earlier_batches(model):
    """The loop has no zero_grad: every batch must take the step that a loop with one would take."""
    reference = copy.deepcopy(model)
    mine, theirs = (MetaMAML(net, inner_lr=0.05, outer_lr=0.01) for net in (model, reference))
    for batch in range(3):
        tasks = [make_task(10 * batch + index) for index in range(2)]
        theirs.outer_optimizer.zero_grad()
        for maml in (mine, theirs):
            for sx, sy, qx, qy in tasks:
                maml.outer_loop(qx, qy, maml.inner_loop(sx, sy)).backward()
            maml.outer_optimizer.step()
        for a, b in zip(model.parameters(), reference.parameters(), strict=True):
            assert torch.equal(a, b) and a.grad is None


def test_inner_loop_leaves_the_model_alone_and_names_every_parameter(model):
    before = copy.deepcopy(model.state_dict())
    sx, sy, *_ = make_task(0)
    adapted = MetaMAML(model, 0.1, 0.1, num_inner_steps=2).inner_loop(sx, sy)
    assert list(adapted) == [name for name, _ in model.named_parameters()]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(param.grad is None for param in model.parameters())


def test_another_loss(model):
    sx, _, qx, _ = make_task(0)
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    maml = MetaMAML(model, 0.1, 0.1, loss_fn=torch.nn.functional.cross_entropy)
    assert maml.outer_loop(qx, labels, maml.inner_loop(sx, labels)).shape == ()


def test_learns_to_adapt():
    """Tasks y = a * x with a sign nobody can guess: the adapted model must beat the one before adaptation."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(1, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    maml = MetaMAML(net, inner_lr=0.1, outer_lr=0.01)
    before, after = [], []
    for _ in range(150):
        for slope in (-1.0, 1.0):
            sx, qx = torch.randn(10, 1), torch.randn(10, 1)
            loss = maml.outer_loop(qx, slope * qx, maml.inner_loop(sx, slope * sx))
            loss.backward()
            before.append(maml.loss_fn(net(qx), slope * qx).item())
            after.append(loss.item())
        maml.outer_optimizer.step()
    assert sum(after[-40:]) < 0.3 * sum(before[-40:])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"inner_lr": 0.0}, "inner_lr"),
        ({"inner_lr": float("nan")}, "inner_lr"),
        ({"outer_lr": -1.0}, "outer_lr"),
        ({"num_inner_steps": 0}, "num_inner_steps"),
    ],
)
def test_bad_arguments_are_named(model, wrong, words):
    with pytest.raises(ValueError, match=words):
        MetaMAML(model, **{"inner_lr": 0.1, "outer_lr": 0.1, **wrong})


def test_targets_that_would_broadcast_are_refused(model):
    maml = MetaMAML(model, 0.1, 0.1)
    with pytest.raises(ValueError, match="loss_fn"):
        maml.inner_loop(torch.randn(6, 3), torch.randn(6, 1))
