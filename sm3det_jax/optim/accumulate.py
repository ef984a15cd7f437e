"""Gradient accumulation: a step of the mean gradient of several micro-batches, one after another.

Losses are those of each micro-batch, whose mean goes into the log and to the task balance. That is
not one large batch: see docs/scaling.md.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def mean_gradient(gradient: Callable, count: int) -> Callable:
  """The mean of `gradient` over micro-batches.

  Args:
    gradient: function of (params, variables, batch, step) that returns ((total, (terms, changed)),
      grads), as `jax.value_and_grad` of `training.loss_function`.
    count: micro-batches of a step.

  Returns:
    The same function of a batch whose arrays have the micro-batches as first axis. Micro-batch `i`
    is randomised as step `step * count + i`. All results are means, but for `changed`: each
    micro-batch finds in `variables` what the one before changed there, and the last one's stays
    (the mean of 'metrics').
  """

  def run(params, variables, batch, step):
    def micro(carry, part):
      i, batch = part
      (total, (terms, changed)), grads = gradient(params, carry, batch, step * count + i)
      changed = dict(changed)
      metrics = changed.pop('metrics', {})
      return {**carry, **changed}, (total, terms, metrics, grads)

    parts = jnp.arange(count, dtype=step.dtype), batch
    state = {k: v for k, v in variables.items() if k != 'params'}

    def add(carry, part):
      state, sums = carry
      state, new = micro(state, part)
      return (state, jax.tree.map(jnp.add, sums, new)), None

    first = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(micro, state, first)[1])
    (state, sums), _ = jax.lax.scan(add, (state, zeros), parts)
    total, terms, metrics, grads = jax.tree.map(lambda x: x / count, sums)
    changed = state | ({'metrics': metrics} if metrics else {})
    return (total, (terms, changed)), grads

  return run
