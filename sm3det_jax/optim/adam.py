"""Adam for parameters that freeze and thaw, some of them together."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def scale_by_adam(
  b1: float,
  b2: float,
  bias_correction: bool = True,
  eps: float = 1e-8,
  names: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
  """`optax.scale_by_adam` whose average may begin anew for a part of the parameters.

  Args:
    b1: decay of the mean gradient.
    b2: decay of the mean square.
    bias_correction: False leaves out the division by 1 - b^steps.
    eps: beside the root.
    names: function of the parameter tree -> the tree of names of what freezes and thaws together;
      each name has its own count of steps. None: one count for all.

  Returns:
    A transform of state `optax.ScaleByAdamState`, its count {name: count} with `names`. In
    `update(..., rests=function of a name)` what rests forgets its moments and its steps.
  """

  def init_fn(params):
    count = jnp.zeros((), jnp.int32)
    if names:
      count = {name: count for name in sorted(set(jax.tree.leaves(names(params))))}
    mu, nu = optax.tree.zeros_like(params), optax.tree.zeros_like(params)
    return optax.ScaleByAdamState(count, mu, nu)

  def update_fn(updates, state, params=None, *, rests=lambda name: False, **extra_args):
    del params, extra_args
    of = names(updates) if names else jax.tree.map(lambda _: 'all', updates)
    counts = state.count if names else {'all': state.count}
    anew = lambda x, name: jnp.zeros_like(x) if rests(name) else x
    counts = {name: anew(optax.safe_increment(n), name) for name, n in counts.items()}
    mu = jax.tree.map(anew, optax.tree.update_moment(updates, state.mu, b1, 1), of)
    nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
    nu = jax.tree.map(anew, nu, of)

    def corrected(moment, bias, name):
      if not bias_correction or rests(name):
        return moment
      return moment / bias[name].astype(moment.dtype)

    bias1, bias2 = ({name: 1 - b**n for name, n in counts.items()} for b in (b1, b2))
    one = lambda m, v, name: corrected(m, bias1, name) / (jnp.sqrt(corrected(v, bias2, name)) + eps)
    count = counts if names else counts['all']
    return jax.tree.map(one, mu, nu, of), optax.ScaleByAdamState(count, mu, nu)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
