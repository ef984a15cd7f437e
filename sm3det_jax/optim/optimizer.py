"""The optimizer: clipped AdamW or SGD with warm-up, groups, phases; the tasks' balance last.

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

from sm3det_jax.config import phases as plan
from sm3det_jax.optim import adam, balance, dla, groups, momentum, phases
from sm3det_jax.sharding import match

logger = logging.getLogger(__name__)


def schedule(optim: Any) -> optax.Schedule:
  """Learning rate by step: linear from `warmup_ratio` to 1 of it, then by `schedule`.

  'step' multiplies by `gamma` at each of `milestones`. 'cosine' is half a cosine from `lr` at step
  0 to `min_lr` at `steps`, whose beginning the warm-up hides (Loshchilov and Hutter 2017).

  Args:
    optim: `config.optim`.
  """

  def lr(step):
    ramp = optim.warmup_ratio + (1 - optim.warmup_ratio) * (step / max(optim.warmup_steps, 1))
    if optim.get('schedule') == 'cosine':
      wave = 0.5 + 0.5 * jnp.cos(jnp.pi * jnp.minimum(step / optim.steps, 1))
      late = optim.min_lr + (optim.lr - optim.min_lr) * wave
      return jnp.where(step < optim.warmup_steps, optim.lr * ramp, late)
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
  """The whole optimizer.

  Args:
    config: uses `optim`, `phases`, `task_balance` and what that names, `tasks`.
    term_groups: {loss term: group}, as `model.term_groups`.

  Returns:
    A transform whose `update(grads, state, params, *, losses, phase=None)` takes the loss terms
    {name: scalar} and the static number of the phase, by default the last. What does not move in a
    phase needs no gradient (None in its place), is no part of the norm that is clipped, gets a zero
    update, and begins with new moments when it thaws. The state's form is the same in all phases.

  Raises:
    UserError: terms of a phase that are none of the model's; at `init`, a regex of groups or phases
      that decides about no parameter.
  """
  c, kind = config.optim, config.task_balance
  phases.check(config, {*term_groups, 'moe/balance'})
  names = (lambda tree: phases.names(tree, config)) if config.phases else None
  decay = groups.add_decay(c.weight_decay, plan.groups(config))
  if c.kind == 'sgd':  # its decay is a part of the gradient, as PyTorch has it
    descent = [decay, momentum.scale_by_momentum(c.momentum, names)]
  else:
    descent = [adam.scale_by_adam(*c.betas, c.bias_correction, names=names), decay]
  steps = [
    optax.clip_by_global_norm(c.clip_norm),
    *descent,
    optax.scale_by_learning_rate(schedule(c)),
  ]
  if kind == 'dla':
    steered = lambda p: match(p, _group_rules(term_groups), all_used=False)
    steps.append(dla.scale_by_dla(term_groups, steered, **config.dla))
  tx = optax.chain(*steps)
  if kind in balance.TRANSFORMS:
    weights = balance.TRANSFORMS[kind](tuple(config.tasks), **config[kind])
    tx = balance.beside(tx, weights)

  def init(params):
    for phase in range(len(plan.phases(config))):
      phases.moving(params, config, phase)  # for its errors
    return tx.init(phases.select(phases.kept(params, config), params))

  def update(grads, state, params, *, losses, phase=None):
    phase = len(plan.phases(config)) - 1 if phase is None else phase
    kept, moving = phases.kept(params, config), phases.moving(params, config, phase)
    zeros = jax.tree.map(jnp.zeros_like, params)
    grads = phases.select(kept, phases.merge(phases.select(moving, grads), zeros))
    rests = lambda name: phases.rests(name, phase)
    with jax.numpy_dtype_promotion('standard'):  # Adam raises a float to its integer count
      updates, state = tx.update(
        grads, state, phases.select(kept, params), losses=losses, rests=rests
      )
    return phases.merge(phases.select(moving, updates), zeros), state

  return optax.GradientTransformationExtraArgs(init, update)


def multipliers(opt_state: Any) -> dict[str, jax.Array]:
  """{group or task: multiplier} of the last update, out of the state of `build`'s optimizer."""
  return optax.tree.get(opt_state, 'multipliers', default={})


def _group_rules(term_groups):
  steered = sorted(set(term_groups.values()))
  heads = '|'.join(sorted({re.escape(group.split('/')[0]) for group in steered}))
  rules = [(f'heads_{re.escape(group)}/.*', group) for group in steered]
  return [*rules, (rf'(?!heads_).*|heads_({heads})/.*', 'shared')]


def gradient_norm(grads: Any) -> jax.Array:
  """L2 norm over the model; the "gradients" of task weights are measurements."""
  return optax.tree.norm({k: v for k, v in grads.items() if k != 'balance'})


def log_parameters(params: Any, term_groups: Mapping[str, str]) -> None:
  """Logs how many parameters every group has."""
  count = collections.Counter()
  of = parameter_groups(params, term_groups)
  for group, p in zip(jax.tree.leaves(of), jax.tree.leaves(params), strict=True):
    count[group] += p.size
  for group in sorted(count):
    logger.info('%-16s %13s parameters', group, f'{count[group]:,}')
  logger.info('%-16s %13s parameters', 'all', f'{sum(count.values()):,}')
