"""Learning rates and weight decay by parameter path: `config.optim.groups`."""

from collections.abc import Sequence
from typing import Any

import jax
import optax

from sm3det_jax.config.phases import Group
from sm3det_jax.sharding import match


def rates(params: Any, groups: Sequence[Group], all_used: bool = True) -> Any:
  """The tree of rate factors: of the first group that matches, 1 where none does.

  Raises:
    UserError: a group that decides about no parameter, and is to (`all_used`).
  """
  return match(params, [(g.path, g.rate) for g in groups], all_used, rest=1.0)


def decays(params: Any, groups: Sequence[Group], all_used: bool = True) -> Any:
  """As `rates`, of decay factors."""
  return match(params, [(g.path, g.decay) for g in groups], all_used, rest=1.0)


def add_decay(weight_decay: float, groups: Sequence[Group]) -> optax.GradientTransformation:
  """rate (update + decay weight_decay parameter), which the learning rate is to multiply."""

  def update_fn(updates, state, params=None):
    def one(update, param, rate, decay):
      if weight_decay * decay:
        update = update + weight_decay * decay * param
      return update if rate == 1 else rate * update

    factors = rates(updates, groups, False), decays(updates, groups, False)
    return jax.tree.map(one, updates, params, *factors), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update_fn)
