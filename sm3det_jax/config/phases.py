"""What of a model a run trains when, and how fast: `config.phases` and `config.optim.groups`.

Both are plain tuples of tuples, so that JSON and the command line give them back as they are.
"""

import re
from typing import NamedTuple

from ml_collections import ConfigDict

from data_pipelines.errors import UserError


class Phase(NamedTuple):
  """A stretch of a run, an entry of `config.phases`.

  Attributes:
    until: steps done when it ends; None for the last one, which has no end.
    terms: names or regexes of the loss terms that count; None: all of them.
    frozen: regexes of whole parameter paths; what they match stays as it is.
  """

  until: int | None = None
  terms: tuple[str, ...] | None = None
  frozen: tuple[str, ...] = ()


class Group(NamedTuple):
  """An entry of `config.optim.groups`; of those that match a parameter the first one counts.

  Attributes:
    path: regex of the whole parameter path.
    rate: factor of the learning rate, the decay's share included; None freezes for the whole run.
    decay: factor of `optim.weight_decay`.
  """

  path: str
  rate: float | None = 1.0
  decay: float = 1.0


def phases(config: ConfigDict) -> tuple[Phase, ...]:
  """Those of a config; by default one, in which everything is trained."""
  return tuple(Phase(*p) for p in config.phases) or (Phase(),)


def groups(config: ConfigDict) -> tuple[Group, ...]:
  """Those of a config."""
  return tuple(Group(*g) for g in config.optim.groups)


def phase_at(config: ConfigDict, done: int) -> int:
  """Number of the phase of the step that follows `done` steps."""
  ends = [p.until for p in phases(config)[:-1]]
  return sum(done >= end for end in ends)


def counts(phase: Phase, term: str) -> bool:
  """Whether a loss term takes part in a phase."""
  return phase.terms is None or any(re.fullmatch(t, term) for t in phase.terms)


def check(config: ConfigDict) -> None:
  """Raises a UserError for phases that do not follow one another, or malformed entries."""
  for i, entry in enumerate(config.optim.groups):
    where = f'config.optim.groups[{i}]={entry!r}'
    if not (_sized(entry, 1, 3) and isinstance(entry[0], str)):
      raise UserError(f'{where}: expected (regex of parameter paths, rate factor, decay factor)')
    _regexes(where, entry[:1])
    rate, decay = Group(*entry)[1:]
    if not (rate is None or _factor(rate)) or not _factor(decay):
      raise UserError(f'{where}: factors are numbers of at least 0, or None for a rate: frozen')
  ends = []
  for i, entry in enumerate(config.phases):
    where = f'config.phases[{i}]={entry!r}'
    if not _sized(entry, 1, 3):
      raise UserError(f'{where}: expected (until step, loss terms or None, frozen parameter paths)')
    until, terms, frozen = Phase(*entry)
    if not (terms is None or _strings(terms)) or not _strings(frozen):
      raise UserError(f"{where}: terms and paths are tuples of regexes, such as ('sar/.*',)")
    _regexes(where, (*(terms or ()), *frozen))
    last = i + 1 == len(config.phases)
    if last != (until is None) or not last and not (isinstance(until, int) and until > 0):
      raise UserError(f'{where}: all phases but the last end at a step, the last has None')
    ends += [] if last else [until]
  if ends != sorted(set(ends)):
    raise UserError(f'config.phases end at steps {ends}, each must end after the one before')


def _sized(entry, least, most):
  return isinstance(entry, tuple | list) and least <= len(entry) <= most


def _strings(values):
  return isinstance(values, tuple | list) and all(isinstance(v, str) for v in values)


def _factor(value):
  return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _regexes(where, patterns):
  for pattern in patterns:
    try:
      re.compile(pattern)
    except re.error as error:
      raise UserError(f'{where}: {pattern!r} is no regular expression: {error}') from None
