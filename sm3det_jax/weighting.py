"""How loss terms become one loss; the weights are parameters, `params['balance']`.

Uncertainties are learned as any parameter. Task weights ('dwa', 'gradnorm') have no gradient: the
optimizer sets them, see `optim/balance.py`. DLA weighs learning rates, not losses: a plain sum.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Sum(nn.Module):
  """The sum of all terms."""

  def __call__(self, terms: dict) -> jax.Array:
    return sum(terms.values())


class Uncertainty(nn.Module):
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


class TaskWeights(nn.Module):
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

  def probed(self, variables: Any, name: str) -> Any:
    """`variables`; the "gradient" of the task's weight is their gradient's squared norm."""
    return _probe(variables, self.weights[self.names.index(name)])


@jax.custom_vjp
def _probe(tree, weight):
  return tree


def _probe_backward(_, g):
  return g, sum(jnp.sum(x * x) for x in jax.tree.leaves(g))


_probe.defvjp(lambda tree, weight: (tree, None), _probe_backward)


def make(balance: str, tasks: tuple[str, ...], terms: tuple[str, ...]) -> nn.Module:
  """The module {term: loss} -> loss of `config.task_balance`."""
  if balance == 'uncertainty':
    return Uncertainty(tuple(t for t in terms if not t.split('/')[1].startswith('rpn_')))
  return TaskWeights(tasks) if balance in ('dwa', 'gradnorm') else Sum()
