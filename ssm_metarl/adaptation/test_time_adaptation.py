"""The `Adapter`: goes on learning at test time, by the same inner step as meta-training.

(The file's name is part of the public interface; pytest is told by ``testpaths`` that it holds no tests.)

Shape legend: B rows of a batch, O observation, A actions, T time steps.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ssm_metarl.adaptation.evidence import Moments, RiseTest, describe
from ssm_metarl.adaptation.losses import ForeignRolloutError, LossFn, LossOf, loss_of_batch
from ssm_metarl.config import Strategy
from ssm_metarl.meta_rl.meta_maml import Params, descend, gradients
from ssm_metarl.types import Batch

Info = dict[str, Any]
HISTORY_LENGTH = 1000
_SIGNS = {
    "return": (-1.0, "the return has fallen"),
    "loss": (1.0, "the loss has risen"),
    "shift": (1.0, "the observations have shifted"),
}
"""What speaks for a new task, the best evidence first, and the sign with which it rises."""


@dataclass(frozen=True)
class AdaptationConfig:
    """How an `Adapter` learns.

    Raises:
        ValueError: names the field, its value and its bound.
    """

    lr: float = 0.001
    """Step size of one gradient step."""
    max_steps_per_call: int = 1
    """Gradient steps that one call of ``adapt`` may take."""
    max_grad_norm: float | None = 10.0
    """A longer gradient is scaled down to this norm; None: it is not."""
    trust_region: float | None = 1.0
    """Largest distance from the meta-parameters, as a share of their norm (or of 1, where that is larger); None: any
    distance."""
    parameters: tuple[str, ...] = ("*",)
    """Names of the parameters that adapt, with the wildcards * and ?."""
    num_full_steps: int | None = None
    """Strategy ``meta``: steps of a task beyond so many go half as far, as those beyond meta-training's number of steps
    overshoot; None: all go as far."""
    false_alarm_rate: float = 0.001
    """Strategy ``meta``: how often a call of ``observe`` takes an unchanged task for a new one (`RiseTest`)."""

    def __post_init__(self) -> None:
        def require(name: str, bound: str, is_valid: Callable[[Any], bool]) -> None:
            value = getattr(self, name)
            if isinstance(value, bool) or not is_valid(value):
                raise ValueError(f"AdaptationConfig.{name} must be {bound}, got {value!r}")

        def positive(number: Any) -> bool:
            return isinstance(number, int | float) and math.isfinite(number) and number > 0

        require("lr", "a positive number", positive)
        require("max_steps_per_call", "at least 1, a whole number", lambda n: isinstance(n, int) and n >= 1)
        require("max_grad_norm", "a positive number or None", lambda x: x is None or positive(x))
        require("trust_region", "a positive number or None", lambda x: x is None or positive(x))
        require("num_full_steps", "a whole number or None", lambda n: n is None or (isinstance(n, int) and n >= 0))
        require("false_alarm_rate", "between 0 and 0.5", lambda x: positive(x) and x < 0.5)


class Adapter:
    """Adapts the parameters of ``target`` in place, batch by batch.

    - ``none``: measures the loss and leaves every parameter bit-identical.
    - ``online``: gradient steps that accumulate over calls.
    - ``meta``: every task starts from the parameters that the target had when the adapter was made (the
      meta-parameters) and takes steps as meta-training did. A new task is announced by another ``task_id`` in the
      context given to `observe`, or, without a ``task_id``, found by `RiseTest` on what `observe` is given.

    A batch that is not finite, or a step that would make the loss or the parameters so, changes nothing, and
    ``info["skipped"]`` says so. The target works in evaluation mode meanwhile, and has its modes back afterwards.

    Args:
        target: any module; called as ``target(observations)``. A `Policy` adapts to rollouts, too.
        cfg: step size, number of steps, guards.
        strategy: ``none``, ``online`` or ``meta``.

    Raises:
        ValueError: an unknown strategy; no parameter to adapt.
    """

    def __init__(self, target: nn.Module, cfg: AdaptationConfig, strategy: Strategy = "none") -> None:
        if strategy not in get_args(Strategy):
            raise ValueError(f"unknown strategy {strategy!r}; choose one of {', '.join(get_args(Strategy))}")
        self.target, self.cfg, self.strategy = target, cfg, strategy
        self.history: deque[dict[str, Any]] = deque(maxlen=HISTORY_LENGTH)
        """What `observe` recorded, the newest last."""
        self.num_steps = 0
        """Gradient steps taken since the task began."""
        self._adapting = {
            name: param
            for name, param in target.named_parameters()
            if param.requires_grad and any(fnmatchcase(name, pattern) for pattern in cfg.parameters)
        }
        if strategy != "none" and not self._adapting:
            raise ValueError(
                f"no parameter to adapt: none of {[name for name, _ in target.named_parameters()]} requires a gradient "
                f"and is named by AdaptationConfig.parameters = {list(cfg.parameters)}"
            )
        self._remember_meta_params()
        self._task_id: Any = None
        self._moments, self._test = Moments(), RiseTest(cfg.false_alarm_rate)

    def adapt(self, batch: Mapping[str, Any] | Batch, loss_fn: LossFn | None = None) -> Info:
        """Takes up to ``cfg.max_steps_per_call`` gradient steps on one batch.

        Args:
            batch: ``observations`` [B, ...] and ``targets`` [B, ...], tensors. Floating-point targets must have the
                shape of the predictions. Or, for a policy, a `Batch` made of a rollout under its present parameters.
            loss_fn: ``loss_fn(predictions, targets) -> scalar``. For a rollout it is the inner loop's, and not given.

        Returns:
            ``loss`` (after the last step), ``loss_before``, ``steps`` (taken), ``grad_norm`` (of the last step taken,
            before clipping; 0 without one), ``param_change`` (L2 distance moved by this call) and ``skipped`` (a
            reason, or None).

        Raises:
            ValueError: a missing key, not a tensor, an empty batch, shapes that would broadcast, or anything that the
                target or the loss cannot take. Nothing has changed.
        """
        loss_of, numbers = loss_of_batch(self.target, batch, loss_fn)
        if not all(bool(torch.isfinite(number).all()) for number in numbers):
            return _info([math.nan], "the batch holds a non-finite number")
        with _evaluation_mode(self.target):
            try:
                return self._measure(loss_of) if self.strategy == "none" else self._descend(loss_of)
            except ForeignRolloutError as error:
                return _info([math.nan], str(error))

    def observe(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """Records what is known of the situation; for ``meta``, finds out whether another task has begun.

        A ``task_id`` says which task it is; one that differs from the last announces a new one. Where there is none,
        what the context holds first of ``return`` (a number, or one per episode), ``loss`` and ``observations`` is
        tested: a return that falls, a loss or a shift of the observations that rises by more than chance is a new task.
        (Where there is a return or loss, the shift decides nothing: the adapter's own steps move the observations.)

        Args:
            context: anything; read are ``task_id``, ``return``, ``loss``, ``observations`` [..., O], and ``logits``
                [..., A] or ``distribution`` (of torch) for what the target predicts.

        Returns:
            The record, also appended to `history`: the context's plain values, ``entropy`` (nats) and ``confidence``
            (probability of the likeliest) where there are logits or a distribution, ``shift`` (in standard deviations)
            where there are observations, ``new_task``, and its ``cause``.

        Raises:
            ValueError: not a mapping, or a value in it that cannot be read as numbers.
        """
        if not isinstance(context, Mapping):
            raise ValueError(f"observe takes a mapping such as {{'task_id': 3}}, got {type(context).__name__}")
        record, numbers = describe(context)
        rows_BO = numbers.pop("observations", None)
        if rows_BO is not None:
            record["shift"] = self._moments.shift(rows_BO)
            numbers["shift"] = np.array([record["shift"]])
        cause = self._new_task(context, numbers)
        if rows_BO is not None:
            self._moments.add(rows_BO)
        record |= {"new_task": cause is not None, **({"cause": cause} if cause else {})}
        self.history.append(record)
        return record

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of the target's parameters, for `restore`."""
        return {name: param.detach().clone() for name, param in self.target.named_parameters()}

    def restore(self, snapshot: Mapping[str, Tensor]) -> None:
        """Puts the parameters back, bit for bit.

        Raises:
            ValueError: names or shapes that are not the target's.
        """
        self._require_own(snapshot)
        with torch.no_grad():
            for name, param in self.target.named_parameters():
                param.copy_(snapshot[name])
        self._travelled = math.inf  # Unknown: the next step measures it.

    def _require_own(self, snapshot: Mapping[str, Tensor]) -> None:
        own = {name: param.shape for name, param in self.target.named_parameters()}
        if own != {name: value.shape for name, value in snapshot.items()}:
            raise ValueError(
                "the snapshot's names or shapes are not those of the target; take it with snapshot() of this adapter"
            )

    def reset(self) -> None:
        """A new task: back to the meta-parameters; what was observed of the last task no longer counts."""
        self.restore(self._meta_params)
        self.num_steps, self._travelled = 0, 0.0
        self._forget()

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` of another adapter around the same kind of target needs to go on."""
        return {
            "params": self.snapshot(),
            "meta_params": {name: value.clone() for name, value in self._meta_params.items()},
            "num_steps": self.num_steps,
            "task_id": self._task_id,
            "moments": {name: getattr(self._moments, name) for name in ("count", "mean_O", "sum_of_squares_O")},
            "values": list(self._test.values),
            "history": list(self.history),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict`.

        Raises:
            ValueError: names or shapes that are not the target's, or not a state at all.
        """
        if missing := self.state_dict().keys() - set(state):
            raise ValueError(f"not the state of an adapter: it lacks {', '.join(sorted(missing))}")
        self._require_own(state["params"])
        self.restore(state["meta_params"])
        self._remember_meta_params()
        self.restore(state["params"])
        self.num_steps, self._task_id = state["num_steps"], state["task_id"]
        vars(self._moments).update(state["moments"])
        self._test.clear()
        self._test.values.extend(state["values"])
        self.history = deque(state["history"], maxlen=HISTORY_LENGTH)

    def _remember_meta_params(self) -> None:
        self._meta_params = self.snapshot()
        self._radius = math.inf
        if self.cfg.trust_region is not None:
            size = _norm(self._meta_params[name] for name in self._adapting)
            self._radius = self.cfg.trust_region * max(1.0, size)
        self._travelled = 0.0

    def _measure(self, loss_of: LossOf) -> Info:
        with torch.no_grad():
            loss = loss_of(True).item()
        return _info([loss], None if math.isfinite(loss) else "the loss is not finite")

    def _descend(self, loss_of: LossOf) -> Info:
        """The steps. In the end the target has the last parameters of which the loss is known to be finite."""
        loss = loss_of(True)
        losses, grad_norm, moved = [loss.item()], 0.0, 0.0
        start = good = written = {name: param.detach().clone() for name, param in self._adapting.items()}
        skipped = None if math.isfinite(losses[0]) else "the loss is not finite"
        try:
            while not skipped and len(losses) <= self.cfg.max_steps_per_call:
                gradient = gradients(loss, self._adapting, first_order=True) if loss.requires_grad else {}
                norm = _norm(gradient.values())
                if not math.isfinite(norm):
                    skipped = "the gradient is not finite"
                    break
                written, length = self._step(good, gradient, norm)
                self._write(written)
                with torch.set_grad_enabled(len(losses) < self.cfg.max_steps_per_call):
                    loss = loss_of(False)
                if not math.isfinite(loss.item()):
                    skipped = "the step would make the loss non-finite"
                    break
                good, grad_norm = written, norm
                moved = length if len(losses) == 1 else _norm(good[name] - start[name] for name in good)
                losses.append(loss.item())
                self.num_steps += 1
        finally:
            if written is not good:  # Also when the loss function raises, or on Ctrl-C.
                self._write(good)
        return _info(losses, skipped, grad_norm, moved)

    def _step(self, params: Params, gradient: Params, grad_norm: float) -> tuple[Params, float]:
        """One step of descent, clipped, and kept within the trust region; and its length."""
        cfg, lr = self.cfg, self.cfg.lr
        if self.strategy == "meta" and cfg.num_full_steps is not None and self.num_steps >= cfg.num_full_steps:
            lr /= 2
        if cfg.max_grad_norm is not None and grad_norm > cfg.max_grad_norm:
            lr *= cfg.max_grad_norm / grad_norm
        proposal = descend(params, gradient, lr)
        # By the triangle inequality nobody needs to measure the distance while all steps together are short.
        self._travelled += lr * grad_norm
        if self._travelled <= self._radius:
            return proposal, lr * grad_norm
        away = {name: value - self._meta_params[name] for name, value in proposal.items()}
        distance = _norm(away.values())
        self._travelled = min(distance, self._radius)
        if distance <= self._radius or not math.isfinite(distance):
            return proposal, lr * grad_norm
        nearest = {name: self._meta_params[name] + value * (self._radius / distance) for name, value in away.items()}
        return nearest, _norm(nearest[name] - params[name] for name in nearest)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        torch._foreach_copy_(list(self._adapting.values()), [values[name] for name in self._adapting])

    def _new_task(self, context: Mapping[str, Any], numbers: Mapping[str, np.ndarray]) -> str | None:
        """Why this seems to be another task than before, None if it does not. A new one begins at once."""
        name = next((name for name in _SIGNS if name in numbers), None)
        if "task_id" in context:
            last, self._task_id = self._task_id, context["task_id"]
            cause = "another task_id" if self._task_id != last else None
        elif name is not None and self._test.rises(_SIGNS[name][0] * numbers[name]):
            cause = _SIGNS[name][1]
        else:
            cause = None
        if cause:
            if self.strategy == "meta":
                self.reset()
            self._forget()
        return cause

    def _forget(self) -> None:
        self._moments = Moments()
        self._test.clear()


@contextlib.contextmanager
def _evaluation_mode(target: nn.Module) -> Iterator[None]:
    training = [module for module in target.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _info(losses: list[float], skipped: str | None, grad_norm: float = 0.0, param_change: float = 0.0) -> Info:
    return {
        "loss": losses[-1],
        "loss_before": losses[0],
        "steps": len(losses) - 1,
        "grad_norm": grad_norm,
        "param_change": param_change,
        "skipped": skipped,
    }


def _norm(tensors: Iterable[Tensor]) -> float:
    tensors = list(tensors)
    return torch.nn.utils.get_total_norm(tensors).item() if tensors else 0.0
