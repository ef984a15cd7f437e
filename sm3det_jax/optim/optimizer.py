"""The optimizer: clipped AdamW with warm-up, step decay, and the balance of the tasks last.

Source: the released configuration (AdamW 1e-4, betas 0.9 and 0.999, decay 0.05 on all parameters,
gradient norm 35, rate / 10 after epochs 8 and 11 of 12, 500 warm-up steps from 1/3). The released
hook never warmed up, by mistake; here it does.
"""

import collections
import logging
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sm3det_jax.optim import balance, dla
from sm3det_jax.sharding import match

logger = logging.getLogger(__name__)


def schedule(optim: Any) -> optax.Schedule:
  """Learning rate by step: linear from `warmup_ratio` to 1 of it, then x `gamma` a milestone.

  Args:
    optim: `config.optim`; uses lr, warmup_steps, warmup_ratio, milestones, gamma.
  """

  def lr(step):
    ramp = optim.warmup_ratio + (1 - optim.warmup_ratio) * (step / max(optim.warmup_steps, 1))
    passed = sum(jnp.where(step >= milestone, 1, 0) for milestone in optim.milestones)
    return optim.lr * jnp.where(step < optim.warmup_steps, ramp, 1.0) * optim.gamma**passed

  return lr


def parameter_groups(params: Any, term_groups: Mapping[str, str]) -> Any:
  """Tree of the group of every parameter, the ones DLA steers.

  Args:
    params: parameters; those of head `rgb` lie under `heads_rgb/<module>/`.
    term_groups: {loss term: group}, a group being 'task/module' such as 'rgb/rpn_head'.

  Returns:
    'task/module' for the parameters of a head's module that has loss terms, 'shared' for the rest
    of the head (as in the reference, which looks for modules by name) and all outside of heads.

  Raises:
    UserError: a head without a loss term, whose parameters are listed; a group without parameters.
  """
  return match(params, _group_rules(term_groups))


def build(config: Any, term_groups: Mapping[str, str]) -> optax.GradientTransformationExtraArgs:
  """The whole optimizer; its `update` needs `losses={term: scalar}` beside gradients and params.

  Args:
    config: uses `optim`, `balance` and what that names, `tasks`.
    term_groups: {loss term: group}, as `detector.term_groups`.
  """
  c, kind = config.optim, config.task_balance
  steps = [
    optax.clip_by_global_norm(c.clip_norm),
    optax.scale_by_adam(*c.betas),
    optax.add_decayed_weights(c.weight_decay),
    optax.scale_by_learning_rate(schedule(c)),
  ]
  if kind == 'dla':
    groups = lambda p: match(p, _group_rules(term_groups), all_used=False)
    steps.append(dla.scale_by_dla(term_groups, groups, **config.dla))
  tx = optax.chain(*steps)
  if kind in balance.TRANSFORMS:
    weights = balance.TRANSFORMS[kind](tuple(config.tasks), **config[kind])
    tx = balance.beside(tx, weights)

  def update(updates, state, params=None, **extra_args):
    with jax.numpy_dtype_promotion('standard'):  # Adam raises a float to its integer count
      return tx.update(updates, state, params, **extra_args)

  return optax.GradientTransformationExtraArgs(tx.init, update)


def multipliers(opt_state: Any) -> dict[str, jax.Array]:
  """{group or task: multiplier} of the last update, out of the state of `build`'s optimizer."""
  return optax.tree.get(opt_state, 'multipliers', default={})


def _group_rules(term_groups):
  groups = sorted(set(term_groups.values()))
  heads = '|'.join(sorted({re.escape(group.split('/')[0]) for group in groups}))
  rules = [(f'heads_{re.escape(group)}/.*', group) for group in groups]
  return [*rules, (rf'(?!heads_).*|heads_({heads})/.*', 'shared')]


def gradient_norm(grads: Any) -> jax.Array:
  """L2 norm over the model; the "gradients" of task weights are measurements."""
  return optax.tree.norm({k: v for k, v in grads.items() if k != 'balance'})


def log_parameters(params: Any, term_groups: Mapping[str, str]) -> None:
  """Logs how many parameters every group has."""
  count = collections.Counter()
  groups = parameter_groups(params, term_groups)
  for group, p in zip(jax.tree.leaves(groups), jax.tree.leaves(params), strict=True):
    count[group] += p.size
  for group in sorted(count):
    logger.info('%-16s %13s parameters', group, f'{count[group]:,}')
  logger.info('%-16s %13s parameters', 'all', f'{sum(count.values()):,}')
