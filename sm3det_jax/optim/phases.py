"""Which parameters move in which phase of a run, by `config.phases` and `config.optim.groups`.

In a tree of parameters, gradients or updates None stands in place of what is left out.
"""

import logging
from typing import Any

import jax
from ml_collections import ConfigDict

from data_pipelines.errors import UserError
from sm3det_jax.config import phases as plan
from sm3det_jax.optim import balance, groups
from sm3det_jax.sharding import match

logger = logging.getLogger(__name__)


def select(which: Any, tree: Any) -> Any:
  """`tree` with None where the tree `which` is False."""
  return jax.tree.map(lambda keep, x: x if keep else None, which, tree)


def merge(part: Any, whole: Any) -> Any:
  """`part` with `whole` in place of None."""
  return jax.tree.map(lambda w, x: w if x is None else x, whole, part)


def kept(params: Any, config: ConfigDict) -> Any:
  """Tree of bool: what the optimizer has a state for, as no group freezes it for the whole run.

  Raises:
    UserError: a group that decides about no parameter.
  """
  found = groups.rates(params, plan.groups(config))
  return _with_task_weights(jax.tree.map(lambda _, rate: rate is not None, params, found), config)


def moving(params: Any, config: ConfigDict, phase: int | None = None) -> Any:
  """Tree of bool: what is trained in a phase, by default the last.

  Raises:
    UserError: as `kept`; a regex of what the phase freezes that matches no parameter.
  """
  frozen = _frozen(params, plan.phases(config)[-1 if phase is None else phase])
  found = jax.tree.map(lambda keep, rest: keep and not rest, kept(params, config), frozen)
  return _with_task_weights(found, config)


def names(params: Any, config: ConfigDict) -> Any:
  """Tree of names of what freezes and thaws together: the phases in which it rests, 'none' else."""
  frozen = [_frozen(params, phase, all_used=False) for phase in plan.phases(config)]
  name = lambda *rests: '_'.join(str(i) for i, rest in enumerate(rests) if rest) or 'none'
  return jax.tree.map(name, *frozen)


def rests(name: str, phase: int) -> bool:
  """Whether what has that name, of `names`, rests in a phase."""
  return str(phase) in name.split('_')


def check(config: ConfigDict, terms: Any) -> None:
  """Raises a UserError for a regex of active terms that matches none of `terms`."""
  for i, phase in enumerate(plan.phases(config)):
    for pattern in phase.terms or ():
      if not any(plan.counts(plan.Phase(terms=(pattern,)), term) for term in terms):
        raise UserError(
          f'config.phases[{i}]: {pattern!r} matches no loss term; terms: {", ".join(sorted(terms))}'
        )


def log(config: ConfigDict, params: Any, phase: int, done: int) -> None:
  """Says what a phase that follows `done` steps trains, and what thaws and freezes in it."""
  this, size = plan.phases(config)[phase], lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  before = plan.phases(config)[phase - 1].frozen if phase else ()
  thawed, frozen = (
    ', '.join(x for x in a if x not in b) or 'nothing'
    for a, b in ((before, this.frozen), (this.frozen, before))
  )
  trained = size(select(moving(params, config, phase), params))
  logger.info(
    'phase %d from step %d: thaws %s, freezes %s; trains %s of %s parameters; terms that count: %s',
    phase, done, thawed, frozen, f'{trained:,}', f'{size(params):,}',
    'all' if this.terms is None else ', '.join(this.terms),
  )  # fmt: skip


def _frozen(params, phase, all_used=True):
  # two regexes of a phase may well overlap: all of them freeze
  trees = [match(params, [(regex, True)], all_used, rest=False) for regex in phase.frozen]
  return jax.tree.map(lambda _, *rest: any(rest), params, *trees)


def _with_task_weights(which, config):
  """Task weights that the optimizer sets (see `balance`) are no parameters of the model."""
  if config.task_balance not in balance.TRANSFORMS:
    return which
  return {**which, 'balance': jax.tree.map(lambda _: True, which['balance'])}
