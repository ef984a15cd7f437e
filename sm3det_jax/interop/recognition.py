"""Which of the known weights a file holds, by the names and shapes of its arrays."""

import logging
from collections import Counter
from typing import NamedTuple

import jax
import numpy as np

from sm3det_jax import config as config_lib
from sm3det_jax.interop import known_weights, matching
from sm3det_jax.interop.known_weights import Known
from sm3det_jax.interop.report import Report
from sm3det_jax.model import build

ALIKE = 0.3  # of the names, below which a file resembles nothing

logger = logging.getLogger(__name__)


class Recognised(NamedTuple):
  """What a file resembles.

  Attributes:
    known: the rows that its arrays fit, all of one model; else those that it resembles most; none
      where it resembles nothing.
    report: what became of each array in their model; None without rows.
  """

  known: list[Known]
  report: Report | None

  @property
  def fits(self) -> bool:
    return self.report is not None and not self.report.problems

  def words(self) -> str:
    """Part of a sentence: what it is or resembles, and where it differs."""
    if not self.known:
      return 'it resembles none of the files that `sm3det weights` lists'
    names = ' or '.join(dict.fromkeys(k.name for k in self.known))
    if self.fits:
      return f'its arrays are those of {names}: --config={self.known[0].config}'
    counts = Counter(row.status for row in self.report.problems)
    words = {'shape': 'of another shape'}
    differ = ', '.join(f'{n} {words.get(status, status)}' for status, n in counts.items())
    return f'it resembles most {names} (--config={self.known[0].config}), with {differ}'


def recognise(state: dict[str, np.ndarray]) -> Recognised:
  """The known weights that a state dict is, or resembles most.

  Names are compared with all known models, shapes with those whose names agree best.
  """
  logger.info('its arrays are compared with those of all known weights, for up to a minute')
  detector = matching.is_whole(state)
  rows = [k for k in known_weights.KNOWN if k.detector == detector]
  models = {}  # rows that differ in training alone share one
  for config in dict.fromkeys(k.config for k in rows):
    c = config_lib.load([f'--config={config}'])
    heads = {name: (task.head.to_dict(), task.classes) for name, task in c.tasks.items()}
    parts = (part.to_dict() for part in (c.backbone, c.moe, c.neck))
    key = repr([heads, *parts, c.label_space])
    models.setdefault(key, (c, []))[1].extend(k for k in rows if k.config == config)
  scores = {key: matching.common(c, state) for key, (c, _) in models.items()}
  best = max(scores.values())
  if best < ALIKE:
    return Recognised([], None)
  found = []
  for key in (key for key, score in scores.items() if score == best):
    c, known = models[key]
    shapes = jax.eval_shape(build(c).init, jax.random.key(0))
    found.append(Recognised(known, matching.match(c, shapes, state, '').report))
    if found[-1].fits:
      break
  return min(found, key=lambda f: len(f.report.problems))
