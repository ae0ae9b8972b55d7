"""The `Adapter`: goes on learning at test time, by the same inner step as meta-training.

(The file's name is part of the public interface; pytest is told by ``testpaths`` that it holds no tests.)
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ssm_metarl.meta_rl.meta_maml import Params, inner_step

Strategy = Literal["none", "online", "meta"]
LossFn = Callable[[Tensor, Tensor], Tensor]
HISTORY_LENGTH = 1000


@dataclass(frozen=True)
class AdaptationConfig:
    """How an `Adapter` learns.

    Raises:
        ValueError: a learning rate that is not a positive number, or fewer than one step per call.
    """

    lr: float = 0.001
    """Step size of one gradient step."""
    max_steps_per_call: int = 1
    """Gradient steps that one call of ``adapt`` may take."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"AdaptationConfig.lr must be a positive number, got {self.lr!r}")
        if self.max_steps_per_call < 1:
            raise ValueError(f"AdaptationConfig.max_steps_per_call must be at least 1, got {self.max_steps_per_call!r}")


class Adapter:
    """Adapts the parameters of ``target`` in place, batch by batch.

    - ``none``: measures the loss and leaves every parameter bit-identical.
    - ``online``: gradient steps that accumulate over calls.
    - ``meta``: as ``online``, but each task starts from the parameters that the target had when the adapter was made
      (the meta-parameters); a new task is announced by another ``task_id`` in the context given to ``observe``.

    A step that would make the parameters or the loss non-finite is not taken, and ``info["skipped"]`` says so.

    Args:
        target: any module; called as ``target(observations)``.
        cfg: step size and number of steps.
        strategy: ``none``, ``online`` or ``meta``.

    Raises:
        ValueError: an unknown strategy.
    """

    def __init__(self, target: nn.Module, cfg: AdaptationConfig, strategy: Strategy = "none") -> None:
        if strategy not in get_args(Strategy):
            raise ValueError(f"unknown strategy {strategy!r}; choose one of {', '.join(get_args(Strategy))}")
        self.target = target
        self.cfg = cfg
        self.strategy = strategy
        self.history: deque[dict[str, Any]] = deque(maxlen=HISTORY_LENGTH)
        """The last contexts given to ``observe``."""
        self._meta_params = self.snapshot()
        self._task_id: Any = None

    def adapt(self, batch: Mapping[str, Any], loss_fn: LossFn) -> dict[str, Any]:
        """Takes up to ``cfg.max_steps_per_call`` gradient steps on one batch.

        Args:
            batch: ``observations`` [B, ...] and ``targets`` [B, ...], tensors. Floating-point targets must have the
                shape of the predictions.
            loss_fn: ``loss_fn(predictions, targets) -> scalar``.

        Returns:
            ``loss`` (after the last step), ``loss_before``, ``steps`` (taken), ``grad_norm`` (of the last step taken, 0
            without one), ``param_change`` (L2 distance moved by this call) and ``skipped`` (a reason, or None).

        Raises:
            ValueError: a missing key, not a tensor, an empty batch, or shapes that would broadcast.
        """
        observations, targets = _check_batch(batch)
        if not _is_finite([observations, targets]):
            return _info(math.nan, math.nan, 0, 0.0, 0.0, "the batch holds a non-finite number")
        start = dict(self.target.named_parameters())

        def loss_under(params: Params) -> Tensor:
            predictions = functional_call(self.target, params, (observations,))
            _check_shapes(predictions, targets)
            return loss_fn(predictions, targets)

        if self.strategy == "none":
            with torch.no_grad():
                loss = loss_under(start).item()
            return _info(loss, loss, 0, 0.0, 0.0, None)
        params, losses, grad_norm, skipped = self._descend(loss_under, start)
        param_change = _distance(params, start)
        self._write(params)
        return _info(losses[-1], losses[0], len(losses) - 1, grad_norm, param_change, skipped)

    def observe(self, context: Mapping[str, Any]) -> None:
        """Records what is known of the situation; a ``task_id`` that differs from the last one starts a new task.

        Raises:
            ValueError: the context is not a mapping.
        """
        if not isinstance(context, Mapping):
            raise ValueError(f"observe takes a mapping such as {{'task_id': 3}}, got {type(context).__name__}")
        self.history.append(dict(context))
        task_id = context.get("task_id", self._task_id)
        if self.strategy == "meta" and task_id != self._task_id:
            self.reset()
        self._task_id = task_id

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of the target's parameters, for `restore`."""
        return {name: param.detach().clone() for name, param in self.target.named_parameters()}

    def restore(self, snapshot: Mapping[str, Tensor]) -> None:
        """Puts the parameters back, bit for bit.

        Raises:
            ValueError: names or shapes that are not the target's.
        """
        own = {name: param.shape for name, param in self.target.named_parameters()}
        if own != {name: value.shape for name, value in snapshot.items()}:
            raise ValueError(
                "the snapshot's names or shapes are not those of the target; take it with snapshot() of this adapter"
            )
        self._write(snapshot)

    def reset(self) -> None:
        """Back to the parameters that the target had when the adapter was made."""
        self.restore(self._meta_params)

    def _descend(
        self, loss_under: Callable[[Params], Tensor], start: Params
    ) -> tuple[Params, list[float], float, str | None]:
        """From ``start``: the parameters reached, the loss before and after each step, the last gradient's norm."""
        params, grad_norm = start, 0.0
        loss = loss_under(params)
        losses = [loss.item()]
        if not math.isfinite(losses[0]):
            return params, losses, grad_norm, "the loss is not finite"
        for _ in range(self.cfg.max_steps_per_call):
            stepped = inner_step(loss, params, self.cfg.lr, first_order=True)
            proposal = {n: p.detach().requires_grad_(params[n].requires_grad) for n, p in stepped.items()}
            if not _is_finite(proposal.values()):
                return params, losses, grad_norm, "the gradient is not finite"
            loss_after = loss_under(proposal)
            if not torch.isfinite(loss_after):
                return params, losses, grad_norm, "the step would make the loss non-finite"
            grad_norm = _distance(proposal, params) / self.cfg.lr
            params, loss = proposal, loss_after
            losses.append(loss.item())
        return params, losses, grad_norm, None

    @torch.no_grad()
    def _write(self, params: Mapping[str, Tensor]) -> None:
        for name, param in self.target.named_parameters():
            if param is not params[name]:
                param.copy_(params[name])


def _info(
    loss: float, loss_before: float, steps: int, grad_norm: float, param_change: float, skipped: str | None
) -> dict[str, Any]:
    return {
        "loss": loss,
        "loss_before": loss_before,
        "steps": steps,
        "grad_norm": grad_norm,
        "param_change": param_change,
        "skipped": skipped,
    }


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


def _is_finite(tensors: Any) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def _distance(params: Params, others: Params) -> float:
    with torch.no_grad():
        return math.sqrt(sum(float((params[name].double() - others[name].double()).square().sum()) for name in params))
