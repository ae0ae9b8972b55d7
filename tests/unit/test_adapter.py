import copy
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssm_metarl.adaptation.evidence import Moments, RiseTest
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
    assert list(adapter.history) == [{"task_id": 3, "domain": "a", "new_task": True, "cause": "another task_id"}]


def test_frozen_parameters_stay(model):
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model)
    Adapter(model, AdaptationConfig(lr=0.1), "online").adapt(make_batch(), F.mse_loss)
    assert torch.equal(model[0].weight, before[0].weight) and not torch.equal(model[2].weight, before[2].weight)
    assert not model[0].weight.requires_grad


# --- guards -----------------------------------------------------------------------------------------------------------


def distance(model, other):
    return sum(((a - b) ** 2).sum() for a, b in zip(model.parameters(), other.parameters(), strict=True)).sqrt().item()


def test_a_long_gradient_is_scaled_down_to_the_limit(model):
    before = copy.deepcopy(model)
    info = Adapter(model, AdaptationConfig(lr=0.1, max_grad_norm=0.01), "online").adapt(make_batch(), F.mse_loss)
    assert info["grad_norm"] > 0.01, "reported as it was"
    assert distance(model, before) == pytest.approx(0.1 * 0.01, rel=1e-3) == info["param_change"]


@pytest.mark.parametrize("steps", [1, 5])
def test_no_number_of_steps_leaves_the_trust_region(model, steps):
    before, batch = copy.deepcopy(model), make_batch()
    batch["targets"] += 100.0
    size = sum((p**2).sum() for p in model.parameters()).sqrt().item()
    cfg = AdaptationConfig(lr=0.01, max_steps_per_call=steps, trust_region=0.02)
    adapter, distances = Adapter(model, cfg, "online"), []
    for _ in range(30):
        adapter.adapt(batch, F.mse_loss)
        distances.append(distance(model, before))
    assert max(distances) <= 0.02 * size * (1 + 1e-4)
    assert distances[-1] == pytest.approx(0.02 * size, rel=1e-3), "on its border, where the data pull"


def test_the_trust_region_is_inactive_within(model):
    other = copy.deepcopy(model)
    for target, region in ((model, 0.5), (other, None)):
        adapter = Adapter(target, AdaptationConfig(lr=0.01, trust_region=region), "online")
        for _ in range(20):
            adapter.adapt(make_batch(), F.mse_loss)
    assert same(model, other)


def test_parameters_are_chosen_by_name(model):
    before = copy.deepcopy(model)
    Adapter(model, AdaptationConfig(lr=0.1, parameters=("2.*", "nothing")), "online").adapt(make_batch(), F.mse_loss)
    assert torch.equal(model[0].weight, before[0].weight) and not torch.equal(model[2].weight, before[2].weight)
    with pytest.raises(ValueError, match=r"no parameter to adapt.*0\.weight.*parameters = \['head\.\*'\]"):
        Adapter(model, AdaptationConfig(parameters=("head.*",)), "online")
    Adapter(model, AdaptationConfig(parameters=("head.*",)), "none").adapt(make_batch(), F.mse_loss)


@pytest.mark.parametrize("strategy", ["none", "online"])
def test_modes_are_put_back_and_running_statistics_stay(strategy):
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.9), torch.nn.Linear(8, 2)
    )
    model[1].eval()
    model[2].train()
    modes = [module.training for module in model.modules()]
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    adapter = Adapter(model, AdaptationConfig(lr=1e-4), strategy)
    infos = [adapter.adapt(make_batch(), F.mse_loss) for _ in range(2)]
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert infos[0]["loss"] == infos[1]["loss_before"], "no dropout: the loss can be compared"


def test_a_loss_function_that_breaks_midway_changes_nothing(model):
    before, calls = copy.deepcopy(model), []

    def loss_fn(predictions, targets):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return F.mse_loss(predictions, targets)

    model.train()
    with pytest.raises(KeyboardInterrupt):
        Adapter(model, AdaptationConfig(lr=0.1), "online").adapt(make_batch(), loss_fn)
    assert same(model, before) and model.training


def test_the_steps_are_those_of_meta_training(model):
    """Bit for bit, with several steps, and half as far beyond num_full_steps."""
    from ssm_metarl.meta_rl.meta_maml import MetaMAML, inner_step

    batch, other = make_batch(), copy.deepcopy(model)
    expected = MetaMAML(other, inner_lr=0.05, outer_lr=1.0, num_inner_steps=3).inner_loop(*batch.values())
    cfg = AdaptationConfig(
        lr=0.05, max_steps_per_call=3, max_grad_norm=None, trust_region=None, num_full_steps=3
    )  # fmt: skip
    adapter = Adapter(model, cfg, "meta")
    adapter.adapt(batch, F.mse_loss)
    assert all(torch.equal(param, expected[name]) for name, param in model.named_parameters())
    expected = {name: value.detach().requires_grad_() for name, value in expected.items()}
    for _ in range(3):
        loss = F.mse_loss(torch.func.functional_call(other, expected, (batch["observations"],)), batch["targets"])
        expected = {n: p.detach().requires_grad_() for n, p in inner_step(loss, expected, 0.025).items()}
    adapter.adapt(batch, F.mse_loss)
    assert all(torch.equal(param, expected[name]) for name, param in model.named_parameters())


def test_a_state_goes_on_in_another_adapter(model):
    batch, cfg = make_batch(), AdaptationConfig(lr=0.1)
    first = Adapter(model, cfg, "meta")
    for step in range(7):
        first.observe({"loss": 1.0 + 0.1 * (step % 2), "observations": batch["observations"]})
        first.adapt(batch, F.mse_loss)
    other = copy.deepcopy(model)
    second = Adapter(other, cfg, "meta")
    second.load_state_dict(first.state_dict())
    assert second.num_steps == 7 and list(second.history) == list(first.history)
    for adapter in (first, second):
        record = adapter.observe({"loss": 50.0, "observations": batch["observations"] + 1})
        assert record["cause"] == "the loss has risen"
    assert second.history[-1] == first.history[-1] and same(model, other)
    with pytest.raises(ValueError, match="lacks"):
        second.load_state_dict({"params": {}})
    before = copy.deepcopy(other)
    with pytest.raises(ValueError, match="names or shapes"):
        second.load_state_dict({**first.state_dict(), "params": {}})
    assert same(other, before)


# --- observe ----------------------------------------------------------------------------------------------------------


def test_observe_measures_entropy_confidence_and_shift(model):
    adapter = Adapter(model, AdaptationConfig())
    logits = torch.log(torch.tensor([[0.5, 0.5], [0.9, 0.1]]))
    rng = np.random.default_rng(0)
    record = adapter.observe({"logits": logits, "observations": rng.normal(size=(4000, 2)), "loss": 2.5, "step": 7})
    assert record["confidence"] == pytest.approx(0.7)
    assert record["entropy"] == pytest.approx((np.log(2) - 0.9 * np.log(0.9) - 0.1 * np.log(0.1)) / 2)
    assert record["shift"] == 0.0 and record["loss"] == 2.5 and record["step"] == 7
    # One of two features has moved by two standard deviations.
    moved = rng.normal([2.0, 0.0], size=(4000, 2))
    assert adapter.observe({"observations": moved})["shift"] == pytest.approx(2 / np.sqrt(2), rel=0.05)
    assert list(adapter.history) == [record, adapter.history[-1]]


def test_moments_of_parts_are_the_moments_of_the_whole():
    rng, moments = np.random.default_rng(0), Moments()
    rows = rng.normal(3.0, 2.0, size=(100, 3))
    for part in np.split(rows, [1, 10, 40]):
        moments.add(part)
    np.testing.assert_allclose(moments.mean_O, rows.mean(axis=0))
    np.testing.assert_allclose(moments.sum_of_squares_O / 99, rows.var(axis=0, ddof=1))


@pytest.mark.parametrize(
    ("context", "words"),
    [
        ({"observations": "abc"}, "observations"),
        ({"return": {"a": 1}}, "return"),
        ({"logits": ["x"]}, "logits"),
        ({"distribution": 3}, "Distribution"),
    ],
)
def test_what_observe_cannot_read_is_an_error(model, context, words):
    with pytest.raises(ValueError, match=words):
        Adapter(model, AdaptationConfig()).observe(context)


def test_other_features_are_an_error(model):
    adapter = Adapter(model, AdaptationConfig())
    adapter.observe({"observations": np.zeros((5, 3))})
    with pytest.raises(ValueError, match="have 4 features now, and had 3"):
        adapter.observe({"observations": np.zeros((5, 4))})


def test_who_says_which_task_it_is_is_believed(model):
    adapter = Adapter(model, AdaptationConfig(), "meta")
    losses = [1.0, 1.1, 0.9, 1.0, 1.1, 0.9, 1.0, 99.0]
    assert [adapter.observe({"loss": loss, "task_id": 4})["new_task"] for loss in losses] == [True] + [False] * 7


def test_numbers_that_are_not_finite_are_no_evidence(model):
    adapter = Adapter(model, AdaptationConfig(), "meta")
    for _ in range(9):
        adapter.observe({"loss": 1.0})
    for loss in (float("nan"), float("inf"), [], [1.0, float("nan")]):
        assert not adapter.observe({"loss": loss, "observations": np.full((2, 2), np.nan)})["new_task"]
    assert adapter.observe({"loss": 2.0})["new_task"]


@pytest.mark.parametrize(
    ("name", "usual", "unusual"), [("return", [0.0, 1.0], -9.0), ("loss", [0.0, 1.0], 9.0), ("observations", [0, 1], 9)]
)
@pytest.mark.parametrize("strategy", ["none", "online", "meta"])
def test_another_task_is_found(model, name, usual, unusual, strategy):
    before, adapter = copy.deepcopy(model), Adapter(model, AdaptationConfig(lr=0.1), strategy)
    rng = np.random.default_rng(0)
    for step in range(30):
        value = usual[step % 2] + 0.1 * rng.normal()
        assert not adapter.observe({name: value})["new_task"]
        adapter.adapt(make_batch(), F.mse_loss)
    record = adapter.observe({name: unusual})
    assert record["new_task"] and record["cause"]
    assert same(model, before) == (strategy in ("none", "meta")), "only meta begins again"
    for step in range(10):
        assert not adapter.observe({name: unusual + 0.1 * (step % 2)})["new_task"], "what is new is soon usual"


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("rate", [0.05, 0.001])
def test_the_rate_of_false_alarms_is_the_one_that_was_asked_for(size, rate):
    """Independent normal values of one distribution, 40,000 calls. (The window lacks what would have been an alarm, so
    that alarms are somewhat more frequent where they are frequent.)
    """
    rng, test, alarms, calls = np.random.default_rng(0), RiseTest(rate), 0, 40_000
    for _ in range(calls):
        if test.rises(rng.normal(size=size)):
            alarms += 1
            test.clear()
            test.values.extend(rng.normal(size=20))
    noise = 5 * np.sqrt(rate * calls)
    assert 0.8 * rate * calls - noise < alarms < 1.2 * rate * calls + noise


# --- ten thousand batches that nobody should send ---------------------------------------------------------------------

BAD_NUMBERS = [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 3.4e38, 1e-45]
DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int8,
    torch.bool,
    torch.complex64,
]


@st.composite
def tensors(draw, columns):
    shape = draw(
        st.sampled_from(
            [(4, columns), (4, columns), (4, columns), (1, columns), (0, columns), (4, 1), (4,), (), (2, 2, columns)]
        )
    )
    values = torch.from_numpy(np.random.default_rng(draw(st.integers(0, 9))).normal(size=shape)).float()
    if values.numel() and draw(st.booleans()):
        values.view(-1)[draw(st.integers(0, values.numel() - 1))] = draw(st.sampled_from(BAD_NUMBERS))
    if draw(st.integers(0, 3)) == 0:
        finite = torch.nan_to_num(values, 0.0, 1.0, -1.0).clamp(-100, 100)
        values = finite.to(draw(st.sampled_from(DTYPES)))
    return values


@st.composite
def batches(draw):
    batch = {"observations": draw(tensors(3)), "targets": draw(tensors(2))}
    match draw(st.integers(0, 12)):
        case 0:
            del batch[draw(st.sampled_from(sorted(batch)))]
        case 1:
            batch[draw(st.sampled_from(sorted(batch)))] = draw(
                st.sampled_from([None, 1.0, "x", [[1.0, 2.0, 3.0]], np.ones((4, 3)), {}])
            )
        case 2:
            return draw(st.sampled_from([None, [], "x", 3, torch.ones(4, 3), [torch.ones(4, 3)]]))
    return batch


LOSSES = [
    F.mse_loss,
    F.cross_entropy,
    lambda p, t: (p - t).abs().sum().sqrt(),
    lambda p, t: p.sum() * 1e20,
    lambda p, t: 1.0,
]


def test_no_batch_harms_the_parameters():
    """Malformed: one clear error; not finite: skipped and said. The parameters are finite, and the last good ones."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    config = AdaptationConfig(lr=0.1, max_steps_per_call=2)
    adapters = {strategy: Adapter(copy.deepcopy(model), config, strategy) for strategy in ("none", "online", "meta")}
    seen = {strategy: Counter() for strategy in adapters}

    # Drawing a batch takes longer than adapting to it, so all strategies get the same.
    @settings(max_examples=3400, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(batches(), st.sampled_from(LOSSES))
    def attempt(batch, loss_fn):
        for strategy, adapter in adapters.items():
            seen[strategy][_outcome(adapter, batch, loss_fn)] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Torch warns of some of what is then refused.
        attempt()
    for counts in seen.values():
        assert min(counts[outcome] for outcome in ("error", "skipped", "taken")) > 100, seen


def _outcome(adapter, batch, loss_fn):
    before = adapter.snapshot()
    try:
        info = adapter.adapt(batch, loss_fn)
    except ValueError as error:
        assert str(error)
        outcome, moved = "error", False
    else:
        outcome, moved = ("skipped" if info["skipped"] else "taken"), info["steps"] > 0
        assert info["skipped"] is None or isinstance(info["skipped"], str)
        assert moved or info["param_change"] == 0.0
        assert not moved or np.isfinite([info["loss"], info["grad_norm"], info["param_change"]]).all()
    after = adapter.snapshot()
    assert all(torch.isfinite(value).all() for value in after.values())
    if not moved:
        assert all(torch.equal(after[name], before[name]) for name in before)
    return outcome
