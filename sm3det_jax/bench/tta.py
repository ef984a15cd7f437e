"""`sm3det bench tta`: what test-time augmentation gains on a run's test sets, and what it costs."""

import itertools
import os
import time

import jax
import numpy as np

from data_pipelines import mixture
from sm3det_jax import checkpoint, evaluate, tta
from sm3det_jax.config import ConfigDict
from sm3det_jax.detector import build

VIEWS = ('', 'flips', 'flips,turns', 'flips,turns,scales:0.8:1.25')
BATCH = 8  # windows at once
REPEATS = 3  # of which the quickest counts


def measure(config: ConfigDict, run: str | os.PathLike) -> dict[str, float]:
  """Evaluates a run with more and more views, merged in each way.

  Args:
    config: of the run, changed or not.
    run: its folder; nothing is written there.

  Returns:
    'map50 <views> <merge>' over all tasks (with tasks' own as 'map50/<task> ..') and
    'time <views> <merge>', the time of a batch of every task's windows relative to one look.
  """
  _, variables = checkpoint.restore_for_inference(run)
  model, result, once = build(config), {}, None
  for views, merge in [('', None), *itertools.product(VIEWS[1:], tta.MERGES)]:
    augmentation = tta.parse(views, merge)
    metrics = evaluate.evaluate(
      config, variables, detector=model, augmentation=augmentation, batch_size=BATCH, pictures=0
    )
    name = f'{views} {merge}' if views else 'none'
    result[f'map50 {name}'] = metrics['overall']['map50']
    for task, scores in metrics['tasks'].items():
      result[f'map50/{task} {name}'] = scores['map50']
    seconds = sum(_seconds(model, config, task, variables, augmentation) for task in config.tasks)
    once = once or seconds
    result[f'time {name}'] = seconds / once
  return result


def _seconds(model, config, task, variables, augmentation):
  """Time of a task's first batch, once compiled."""
  step = tta.detect_step(model, config, task, augmentation)
  batch = next(iter(mixture.eval_batches(config, task, batch_size=BATCH)))
  images, shapes = batch['images'], batch['shapes']
  jax.block_until_ready(step(variables, images, shapes))
  times = []
  for _ in range(REPEATS):
    start = time.perf_counter()
    jax.block_until_ready(step(variables, images, shapes))
    times.append(time.perf_counter() - start)
  return float(np.min(times))
