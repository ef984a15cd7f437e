"""How many of the training objects a head's anchors reach; a run prints it at its start.

Objects that no anchor reaches cannot be learned: the released anchors start at 32 px, and half of
some drone data sets are persons of 11 x 19 px.
"""

import functools
import logging
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.task import Task
from sm3det_jax.heads import head_class

IMAGES = 64  # of each task, augmented as in training

logger = logging.getLogger(__name__)


def reached(c: ConfigDict) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """The compiled (boxes [M, 4 | 5], valid [M]) -> bool [M] of a task's config: `Head.reached`."""
  return jax.jit(functools.partial(head_class(c.head.type).reached, c.head, tuple(c.size)))


def share(data: Task, images: int = IMAGES) -> tuple[float, int]:
  """(share of a task's training objects that its anchors reach, objects looked at)."""
  hits, total, function = 0, 0, reached(data.config)
  for position in range(min(images, len(data.pool))):
    batch, _ = data.stack([data.draw(position)[0]], 1)
    hits += int(np.sum(function(batch['boxes'][0], batch['valid'][0])))
    total += int(batch['valid'].sum())
  return hits / max(total, 1), total


def report(tasks: dict[str, Task]) -> dict[str, float]:
  """Logs and returns the share of every task that has a head; `tasks` from `mixture.open_tasks`."""
  shares = {}
  for task, data in tasks.items():
    if 'head' not in data.config:
      continue
    shares[task], total = share(data)
    what = head_class(data.config.head.type).REACHED
    logger.info('%s: %.1f %% of %d %s', task, 100 * shares[task], total, what)
  return shares
