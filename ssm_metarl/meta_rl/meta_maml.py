"""Model-agnostic meta-learning: the inner step that the whole package shares, and `MetaMAML` around it.

Source: Finn, Abbeel, Levine 2017, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", Algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

Params = dict[str, Tensor]
LossFn = Callable[[Tensor, Tensor], Tensor]


def inner_step(loss: Tensor, params: Mapping[str, Tensor], lr: float, *, first_order: bool = False) -> Params:
    """One step of gradient descent, ``theta' = theta - lr * d loss / d theta`` (MAML, Eq. 1), as a differentiable map.

    Args:
        loss: scalar, a function of ``params``.
        params: name -> tensor. Those that ask for no gradient, or that the loss does not touch, stay as they are.
        lr: the inner learning rate.
        first_order: treat the gradient as a constant, so that d theta' / d theta is the identity (FOMAML).

    Returns:
        A new mapping with the same names, still attached to the graph of ``params``.
    """
    return descend(params, gradients(loss, params, first_order=first_order), lr)


def gradients(loss: Tensor, params: Mapping[str, Tensor], *, first_order: bool) -> Params:
    """``d loss / d theta`` by name, of the parameters that ask for a gradient and that the loss touches."""
    trainable = {name: param for name, param in params.items() if param.requires_grad}
    found = torch.autograd.grad(loss, list(trainable.values()), create_graph=not first_order, allow_unused=True)
    return {name: gradient for name, gradient in zip(trainable, found, strict=True) if gradient is not None}


def descend(params: Mapping[str, Tensor], gradient: Mapping[str, Tensor], lr: float) -> Params:
    """``theta - lr * gradient``; parameters without a gradient stay as they are."""
    if not gradient:
        return dict(params)
    # All tensors in one call: at these sizes the overhead of calls is most of the time.
    steps = torch._foreach_mul(list(gradient.values()), lr)
    moved = torch._foreach_sub([params[name] for name in gradient], steps)
    return {**params, **dict(zip(gradient, moved, strict=True))}


def mean_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """The default loss. Shapes must agree: broadcasting here would silently train on the wrong pairs."""
    if prediction.shape != target.shape:
        raise ValueError(
            f"the model predicts shape {tuple(prediction.shape)} but the targets have shape {tuple(target.shape)}; "
            "give targets of the same shape, or MetaMAML(loss_fn=...) for another pairing"
        )
    return nn.functional.mse_loss(prediction, target)


class MetaMAML:
    """Meta-learns the initial parameters of any ``nn.Module`` from (support, query) pairs.

    Call ``backward()`` on every task's meta-loss and ``outer_optimizer.step()`` once per batch of tasks; the step
    clears the gradients behind it, so that batches never add up.

    Args:
        model: the module whose parameters are the meta-parameters.
        inner_lr: step size of the adaptation to one task.
        outer_lr: learning rate of ``outer_optimizer`` (Adam on the model's parameters).
        first_order: drop the derivative through the inner step (FOMAML).
        loss_fn: ``loss_fn(prediction, target) -> scalar``; mean squared error unless given.
        num_inner_steps: gradient steps on the support set.

    Raises:
        ValueError: a learning rate that is not a positive number, or fewer than one inner step.
    """

    def __init__(
        self,
        model: nn.Module,
        inner_lr: float,
        outer_lr: float,
        first_order: bool = False,
        *,
        loss_fn: LossFn = mean_squared_error,
        num_inner_steps: int = 1,
    ) -> None:
        for name, value in (("inner_lr", inner_lr), ("outer_lr", outer_lr)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        if num_inner_steps < 1:
            raise ValueError(f"num_inner_steps must be at least 1, got {num_inner_steps!r}")
        self.model = model
        self.inner_lr = inner_lr
        self.first_order = first_order
        self.loss_fn = loss_fn
        self.num_inner_steps = num_inner_steps
        self.outer_optimizer = torch.optim.Adam(model.parameters(), lr=outer_lr)
        self.outer_optimizer.register_step_post_hook(lambda optimizer, *_: optimizer.zero_grad())

    def inner_loop(self, support_x: Tensor, support_y: Tensor) -> Params:
        """Adapts to one task: ``num_inner_steps`` gradient steps on its support set.

        Returns one tensor per parameter name, in the graph of the meta-parameters; the model itself is unchanged.
        """
        params: Params = dict(self.model.named_parameters())
        for _ in range(self.num_inner_steps):
            loss = self.loss_fn(functional_call(self.model, params, (support_x,)), support_y)
            params = inner_step(loss, params, self.inner_lr, first_order=self.first_order)
        return params

    def outer_loop(self, query_x: Tensor, query_y: Tensor, adapted_params: Mapping[str, Tensor]) -> Tensor:
        """The meta-loss of one task: the query loss under the adapted parameters (scalar).

        Its ``backward()`` reaches the meta-parameters, through the inner steps unless ``first_order``.
        """
        return self.loss_fn(functional_call(self.model, dict(adapted_params), (query_x,)), query_y)
