"""Stochastic gradient descent's momentum, for parameters that freeze and thaw, some together."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def scale_by_momentum(
  decay: float, names: Callable[[Any], Any] | None = None
) -> optax.GradientTransformationExtraArgs:
  """decay times the last update plus the gradient, as PyTorch's SGD without dampening.

  Args:
    decay: of what is kept of the last update.
    names: function of the parameter tree -> the tree of names of what freezes and thaws together;
      None: nothing does.

  Returns:
    A transform of state `optax.TraceState`. In `update(..., rests=function of a name)` what rests
    forgets its updates.
  """

  def init_fn(params):
    return optax.TraceState(optax.tree.zeros_like(params))

  def update_fn(updates, state, params=None, *, rests=lambda name: False, **extra_args):
    del params, extra_args
    of = names(updates) if names else jax.tree.map(lambda _: 'all', updates)
    one = lambda g, t, name: jnp.zeros_like(t) if rests(name) else g + decay * t
    trace = jax.tree.map(one, updates, state.trace, of)
    return trace, optax.TraceState(trace)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
