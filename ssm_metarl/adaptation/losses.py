"""The loss of one batch that an `Adapter` is given, and everything that can be wrong with a batch.

Shape legend: T time steps, B rows of a batch or episodes.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from ssm_metarl.meta_rl.objectives import as_tensors, masked_mean, surrogate
from ssm_metarl.types import Batch

LossFn = Callable[[Tensor, Tensor], Tensor]
LossOf = Callable[[bool], Tensor]
"""``loss_of(first)``: the loss under the target's present parameters; the first time the batch is checked."""
MAX_LOG_RATIO = 0.1
"""Mean |log-ratio| between acting and present policy above which a rollout is not the present policy's own."""


class ForeignRolloutError(Exception):
    """The rollout was not collected under the present parameters."""


def loss_of_batch(
    target: nn.Module, batch: Mapping[str, Any] | Batch, loss_fn: LossFn | None
) -> tuple[LossOf, Iterable[Tensor]]:
    """How to compute the loss of a batch, and the tensors that it is made of.

    Raises:
        ValueError: a missing key, not a tensor, empty, or a loss function that is missing or out of place.
    """
    if isinstance(batch, Batch):
        if loss_fn is not None:
            raise ValueError("a rollout has a loss of its own: call adapt(batch) without loss_fn")
        batch = as_tensors(batch)
        return functools.partial(_rollout_loss, target, batch), vars(batch).values()
    observations, targets = _check_batch(batch)
    if not callable(loss_fn):
        raise ValueError(f"loss_fn(predictions, targets) must be a function, got {loss_fn!r}")
    return functools.partial(_paired_loss, target, observations, targets, loss_fn), (observations, targets)


def _paired_loss(target: nn.Module, observations: Tensor, targets: Tensor, loss_fn: LossFn, first: bool) -> Tensor:
    with _one_error(), contextlib.ExitStack() as stack:
        predictions = target(observations)
        if first:
            _check_shapes(predictions, targets)
            if not targets.is_floating_point():  # Torch only warns where such targets broadcast.
                stack.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("error", "Using a target size", UserWarning)
        loss = loss_fn(predictions, targets)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ValueError(f"loss_fn must return a tensor with one number, got {loss!r:.80}")
    return loss


def _rollout_loss(policy: nn.Module, batch: Batch, first: bool) -> Tensor:
    with _one_error():
        logp_TB = policy.distribution(policy(batch.input_TBI)).log_prob(batch.action_TBA)
        if first and masked_mean((logp_TB - batch.logp_TB).abs(), batch.mask_TB) > MAX_LOG_RATIO:
            raise ForeignRolloutError("the rollout was collected under other parameters")
        return -surrogate(logp_TB, batch.logp_TB, batch.advantage_TB, batch.mask_TB, "lvc")


@contextlib.contextmanager
def _one_error() -> Iterator[None]:
    """Whatever torch says of a batch that does not fit becomes a ValueError."""
    try:
        yield
    except (RuntimeError, TypeError, IndexError, AttributeError, KeyError, UserWarning) as error:
        raise ValueError(f"the target or the loss cannot take this batch: {error}") from error


def _check_batch(batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, Mapping):
        raise ValueError(f"adapt takes a mapping with 'observations' and 'targets', got {type(batch).__name__}")
    for key in ("observations", "targets"):
        if key not in batch:
            raise ValueError(f"the batch has no {key!r}; it has {sorted(map(str, batch))}")
        if not isinstance(batch[key], Tensor):
            raise ValueError(
                f"batch[{key!r}] must be a torch.Tensor, got {type(batch[key]).__name__}; try torch.as_tensor"
            )
        if batch[key].numel() == 0:
            raise ValueError(f"batch[{key!r}] is empty: nothing to adapt to")
    return batch["observations"], batch["targets"]


def _check_shapes(predictions: Tensor, targets: Tensor) -> None:
    """Float targets pair with predictions one to one; integer targets (class labels) at least row by row."""
    same = (
        predictions.shape == targets.shape
        if targets.is_floating_point()
        else predictions.shape[:1] == targets.shape[:1]
    )
    if not same:
        raise ValueError(
            f"predictions of shape {tuple(predictions.shape)} do not pair with targets {tuple(targets.shape)}; "
            "they would broadcast: give targets of the predictions' shape"
        )
