"""Task weights that the optimizer sets: dynamic weight average and GradNorm.

Both are optax transforms of `params['balance']['weights']` [T], whose updates lead to the new
weights; for all else see `beside`. A step without all tasks, or with a loss that is not finite,
counts for neither.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class DwaState(NamedTuple):
  """Losses [T] summed over the period so far, and their averages in the last two; 0 = none yet."""

  count: jax.Array
  total: jax.Array
  last: jax.Array
  before: jax.Array
  multipliers: dict[str, jax.Array]  # the weights, for the logs


class GradNormState(NamedTuple):
  """`first`: losses [T] of the first step, 0 = none yet; `adam`: of the weights."""

  first: jax.Array
  adam: Any
  multipliers: dict[str, jax.Array]


def dwa_weights(last: jax.Array, before: jax.Array, temperature: float) -> jax.Array:
  """T softmax(w / temperature) over tasks [T] with w = last / before (Liu et al. 2019, eq. 7)."""
  return len(last) * jax.nn.softmax(last / before / temperature)


def gradnorm_gradient(
  norms: jax.Array, losses: jax.Array, first: jax.Array, weights: jax.Array, alpha: float
) -> jax.Array:
  """Gradient [T] of sum |G - mean(G) r^alpha| by the task weights (Chen et al. 2018, eq. 1 and 2).

  Args:
    norms: G, of the gradients of weight times loss in the last shared layers.
    losses: of the tasks; r is losses / first over its mean.
    first: losses of the first step.
    weights: of the tasks.
    alpha: how strongly slow tasks are sped up.
  """
  pace = losses / first
  target = jnp.mean(norms) * (pace / jnp.mean(pace)) ** alpha  # a constant to the gradient
  return jnp.sign(norms - target) * norms / weights


def dwa(tasks: Sequence[str], temperature: float = 2.0, period: int = 1):
  """Weights by how fast a task's loss, averaged over `period` steps, falls: the slower the more."""

  def init(params):
    weights = params['balance']['weights']
    zeros = jnp.zeros_like(weights)
    return DwaState(jnp.zeros((), jnp.int32), zeros, zeros, zeros, _named(tasks, weights))

  def update(updates, state, params=None, *, losses, **extra_args):
    del extra_args
    loss, valid = _task_losses(tasks, losses, state.total)
    count, total = state.count + 1, state.total + loss
    full = valid & (count == period)
    last = jnp.where(full, total / period, state.last)
    before = jnp.where(full, state.last, state.before)
    known = before > 0
    weights = jnp.where(known, dwa_weights(last, jnp.where(known, before, 1), temperature), 1)
    count = jnp.where(valid, jnp.where(full, 0, count), state.count)
    total = jnp.where(valid, jnp.where(full, 0, total), state.total)
    state = DwaState(count, total, last, before, _named(tasks, weights))
    return _moved(updates, params, weights), state

  return optax.GradientTransformationExtraArgs(init, update)


def gradnorm(tasks: Sequence[str], alpha: float = 1.5, lr: float = 0.025):
  """Weights that keep the gradients of all tasks at one pace: Adam, none below 0.001, sum T.

  What comes in for them are the squared norms that `weighting.TaskWeights.probed` measures.
  """
  adam = optax.adam(lr)

  def init(params):
    weights = params['balance']['weights']
    return GradNormState(jnp.zeros_like(weights), adam.init(weights), _named(tasks, weights))

  def update(updates, state, params=None, *, losses, **extra_args):
    del extra_args
    weights, norms = params['balance']['weights'], jnp.sqrt(updates['balance']['weights'])
    loss, valid = _task_losses(tasks, losses, weights)
    first = jnp.where(state.first > 0, state.first, loss)
    slope = gradnorm_gradient(norms, loss, first, weights, alpha)
    change, moments = adam.update(jnp.where(valid, slope, 0), state.adam)
    new = jnp.maximum(weights + change, 1e-3)
    new = new * (len(tasks) / jnp.sum(new))
    keep = lambda new, old: jnp.where(valid, new, old)
    new, first, moments = jax.tree.map(
      keep, (new, first, moments), (weights, state.first, state.adam)
    )
    return _moved(updates, params, new), GradNormState(first, moments, _named(tasks, new))

  return optax.GradientTransformationExtraArgs(init, update)


TRANSFORMS = {'dwa': dwa, 'gradnorm': gradnorm}


def beside(tx: optax.GradientTransformation, weights: optax.GradientTransformation):
  """`tx` for the model, `weights` for `params['balance']`."""
  label = lambda params: {key: 'balance' if key == 'balance' else 'model' for key in params}
  return optax.partition({'model': tx, 'balance': weights}, label)


def _moved(updates, params, weights):
  return {**updates, 'balance': {'weights': weights - params['balance']['weights']}}


def _task_losses(tasks, losses: Mapping[str, Any], like):
  """Losses [T] of the tasks, 1 where one is absent, not finite or not positive; whether none is."""
  of = lambda task: [v for k, v in losses.items() if k.split('/')[0] == task]
  total = jnp.stack([jnp.asarray(sum(of(task), 0.0), like.dtype) for task in tasks])
  valid = jnp.isfinite(total) & (total > 0)
  return jnp.where(valid, total, 1), jnp.all(valid)


def _named(tasks, weights):
  return {task: weights[i] for i, task in enumerate(tasks)}
