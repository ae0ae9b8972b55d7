"""Policy-gradient objectives of meta-reinforcement learning: estimators, outer rules, the fold over tasks.

An algorithm is a choice of configuration over `meta_loss`, never a class: ``maml`` and ``promp`` run the same code.

Shape legend: T time steps, B episodes of one task, I policy input, A action, D distribution parameters, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence
from torch.func import functional_call

from ssm_metarl.config import TrainConfig
from ssm_metarl.core.policy import Policy
from ssm_metarl.meta_rl.meta_maml import Params, inner_step
from ssm_metarl.types import Batch

BatchSource = Callable[[int, Params], Batch]
"""``source(k, params)``: the rollout under the parameters adapted k times, collected now or kept from before."""


def masked_mean(x_TB: Tensor, mask_TB: Tensor) -> Tensor:
    """Mean over the valid steps."""
    return (x_TB * mask_TB).sum() / mask_TB.sum()


def surrogate(logp_TB: Tensor, old_logp_TB: Tensor, advantage_TB: Tensor, mask_TB: Tensor, estimator: str) -> Tensor:
    """The objective of the inner step, whose derivatives estimate those of the expected return (to be maximised).

    With ``w_t = sum_{k <= t} (logp_k - old_logp_k)`` the three estimators weigh the advantage A_t by

    - ``dice``: ``exp(w_t) - exp(w_{t-1})``. First and second derivative are unbiased where A_t is the return from t on
      minus a function of the state (Foerster et al. 2018; in advantages: Farquhar et al. 2019, "Loaded DiCE").
    - ``lvc``: ``exp(logp_t - old_logp_t)``. Leaves out products of scores at different times from the second
      derivative: biased, with far less variance (Rothfuss et al. 2019, ProMP, Eq. 8).
    - ``naive``: ``logp_t``. The first derivative is right where old and new policy agree; the second lacks every
      product of scores.

    All agree in the first derivative at ``logp == old_logp``. None credits exploration in the support rollout for what
    the adapted policy gains by it (E-MAML).
    """
    if estimator == "naive":
        return masked_mean(logp_TB * advantage_TB, mask_TB)
    log_ratio_TB = (logp_TB - old_logp_TB) * mask_TB
    if estimator == "lvc":
        return masked_mean(log_ratio_TB.exp() * advantage_TB, mask_TB)
    if estimator == "dice":
        weight_TB = log_ratio_TB.cumsum(dim=0).exp()
        previous_TB = torch.cat([torch.ones_like(weight_TB[:1]), weight_TB[:-1]])
        return masked_mean((weight_TB - previous_TB) * advantage_TB, mask_TB)
    raise ValueError(f"unknown estimator {estimator!r}; inner.estimator is one of dice, lvc, naive")


def clipped_surrogate(
    logp_TB: Tensor, old_logp_TB: Tensor, advantage_TB: Tensor, mask_TB: Tensor, clip: float
) -> Tensor:
    """``min(r A, clamp(r, 1 - clip, 1 + clip) A)``, r the likelihood ratio, to be maximised (PPO, Eq. 7)."""
    ratio_TB = (logp_TB - old_logp_TB).exp()
    clipped_TB = ratio_TB.clamp(1.0 - clip, 1.0 + clip)
    return masked_mean(torch.minimum(ratio_TB * advantage_TB, clipped_TB * advantage_TB), mask_TB)


def meta_loss(policy: Policy, params: Params, source: BatchSource, config: TrainConfig) -> Tensor:
    """The outer loss of one task (scalar): adapt on ``inner.num_steps`` support rollouts, judge the query rollout.

    ``outer.rule: gradient`` is MAML's policy gradient of the adapted policy; ``clipped`` is ProMP's objective (Rothfuss
    et al. 2019, Eq. 10): clipped ratios against the stored log-probabilities, and KL(collecting policy || current
    policy) before adaptation, on the support states.
    """
    adapted, penalty = dict(params), torch.zeros(())
    for k in range(config.inner.num_steps + 1):
        batch = as_tensors(source(k, adapted))
        distribution = _distribution(policy, adapted, batch)
        terms = (distribution.log_prob(batch.action_TBA), batch.logp_TB, batch.advantage_TB, batch.mask_TB)
        if k == 0 and config.outer.rule == "clipped" and config.outer.kl_penalty > 0:
            divergence_TB = kl_divergence(policy.distribution(batch.dist_TBD), distribution)
            penalty = config.outer.kl_penalty * masked_mean(divergence_TB, batch.mask_TB)
        if k < config.inner.num_steps:
            support_loss = -surrogate(*terms, config.inner.estimator)
            adapted = inner_step(support_loss, adapted, config.inner.lr, first_order=config.inner.first_order)
    if config.outer.rule == "clipped":
        return penalty - clipped_surrogate(*terms, config.outer.clip)
    return -surrogate(*terms, "lvc")


def fold(gradients: Iterable[np.ndarray]) -> np.ndarray:
    """Mean of the tasks' meta-gradients, in task order in float64, cast once: the same bits for any worker count.

    Args:
        gradients: float32 [P] each, in task order. Returns float32 [P].
    """
    total_P, count = None, 0
    for gradient_P in gradients:
        if total_P is None:
            total_P = gradient_P.astype(np.float64)
        else:
            total_P += gradient_P
        count += 1
    if total_P is None:
        raise ValueError("fold needs at least one gradient; tasks_per_iteration must be at least 1")
    return (total_P / count).astype(np.float32)


def as_tensors(batch: Batch) -> Batch:
    """The same record with torch tensors for its arrays (copied: arrays from the object store are read-only)."""
    return Batch(**{name: torch.tensor(value) for name, value in vars(batch).items()})


def _distribution(policy: Policy, params: Mapping[str, Tensor], batch: Batch) -> Distribution:
    return policy.distribution(functional_call(policy, dict(params), (batch.input_TBI,)))
