"""How loss terms become one loss; the weights are parameters, `params['balance']`.

Uncertainties are learned as any parameter. Task weights ('dwa', 'gradnorm') have no gradient: the
optimizer sets them, see `optim/balance.py`. DLA weighs learning rates, not losses: a plain sum.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Balance(nn.Module):
  """A loss of terms {'task/term': scalar}; the subclasses say which."""

  def around(self, neck: nn.Module, task: str) -> Callable:
    """The neck as the head of a task calls it in training."""
    del task
    return neck


class Sum(Balance):
  """The sum of all terms."""

  def __call__(self, terms: dict) -> jax.Array:
    return sum(terms.values())


class Uncertainty(Balance):
  """Sum of L / (2 sigma²) + ln(1 + sigma²), a sigma a term; others are added as they are.

  Kendall et al. 2018, equation 7, with the regulariser that stays positive (Liebel and Koerner
  2018), as the paper's baseline has it. Terms of region proposals have no sigma there.

  Attributes:
    names: of the weighted terms.
  """

  names: tuple[str, ...]

  @nn.compact
  def __call__(self, terms: dict) -> jax.Array:
    sigmas = self.param('sigmas', nn.initializers.ones, (len(self.names),))
    squares = dict(zip(self.names, sigmas**2, strict=True))
    weigh = lambda name, loss: 0.5 / squares[name] * loss + jnp.log1p(squares[name])
    return sum(weigh(k, v) if k in squares else v for k, v in terms.items())


class TaskWeights(Balance):
  """Sum of w L, L being the sum of a task's terms; what belongs to no task is added as it is.

  Attributes:
    names: of the tasks.
  """

  names: tuple[str, ...]

  def setup(self):
    self.weights = self.param('weights', nn.initializers.ones, (len(self.names),))

  def __call__(self, terms: dict) -> jax.Array:
    weights = dict(zip(self.names, jax.lax.stop_gradient(self.weights), strict=True))
    return sum(v * weights.get(k.split('/')[0], 1.0) for k, v in terms.items())


class GradNorm(TaskWeights):
  """Task weights whose "gradients" are the squared norms of the tasks' gradients of the neck."""

  def around(self, neck, task):
    neck, variables = neck.unbind()
    return lambda *args: neck.apply(self.probed(variables, task), *args)

  def probed(self, variables: Any, task: str) -> Any:
    """`variables`; the "gradient" of the task's weight is their gradient's squared norm."""
    return _probe(variables, self.weights[self.names.index(task)])


@jax.custom_vjp
def _probe(tree, weight):
  return tree


def _probe_backward(_, g):
  return g, sum(jnp.sum(x * x) for x in jax.tree.leaves(g))


_probe.defvjp(lambda tree, weight: (tree, None), _probe_backward)


def make(balance: str, tasks: tuple[str, ...], terms: tuple[str, ...]) -> Balance:
  """The module {term: loss} -> loss of `config.task_balance`."""
  if balance == 'uncertainty':
    return Uncertainty(tuple(t for t in terms if not t.split('/')[1].startswith('rpn_')))
  kinds = {'dwa': TaskWeights, 'gradnorm': GradNorm}
  return kinds[balance](tasks) if balance in kinds else Sum()
