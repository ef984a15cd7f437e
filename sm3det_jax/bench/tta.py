"""`sm3det bench tta`: what test-time augmentation gains on a run's test sets, and what it costs."""

import itertools
import os
import time

import jax
import numpy as np

from data_pipelines import mixture
from data_pipelines.task import Task
from sm3det_jax import checkpoint, evaluate, inference
from sm3det_jax.config import ConfigDict
from sm3det_jax.detector import M2Det, build
from sm3det_jax.metrics import table
from sm3det_jax.prediction import tta

VIEWS = ('flips', 'flips,turns', 'flips,turns,scales:0.8:1.25')  # the last has those of all others
BATCH = 8  # windows at once
REPEATS = 3  # of which the quickest counts


def measure(config: ConfigDict, run: str | os.PathLike) -> dict[str, float]:
  """Scores a run with more and more views, merged in each way; each view is looked at once.

  Args:
    config: of the run, changed or not.
    run: its folder; nothing is written there.

  Returns:
    Of one look ('none') and of every choice of views and merge: 'map50 <it>' over all tasks of
    boxes, 'map50/<task> <it>', and 'time <it>', how many times the time of one look it takes (the
    last of these tasks, one batch).
  """
  _, variables = checkpoint.restore_for_inference(run)
  model, scores, result = build(config), {}, {}
  choices = list(itertools.product(VIEWS, tta.MERGES))
  asked = {'none': None} | {f'{text} {how}': tta.parse(text, how) for text, how in choices}
  for task, c in config.tasks.items():
    if c.kind == 'image':
      continue
    last, data = task, Task(config, task, 'test')
    for name, windows in _windows(model, config, task, variables, asked).items():
      found, _ = evaluate.score(
        windows, data.whole_truth(), c.kind, tuple(c.classes), evaluate.PROTOCOLS
      )
      scores.setdefault(name, {})[task] = found.summary
  seconds = {name: _seconds(model, config, last, variables, a) for name, a in asked.items()}
  for name, tasks in scores.items():
    result[f'map50 {name}'] = table.combine(tasks)['overall']['map50']
    result |= {f'map50/{task} {name}': summary['map50'] for task, summary in tasks.items()}
    result[f'time {name}'] = seconds[name] / seconds['none']
  return result


def _windows(model: M2Det, config, task, variables, asked) -> dict[str, list[dict]]:
  """{what is asked for: its detections in every window, as `evaluate.score` takes them}."""
  every = tta.parse(VIEWS[-1]).views
  look = inference.on_files(tta.looks(model, task, every), config, task)
  own, iou = inference.own_labels(config, task), config.tasks[task].head.nms_iou

  @jax.jit
  def answers(found):
    merged = {'none': jax.tree.map(lambda x: x[0], found)}
    for name, a in asked.items():
      if a:
        some = np.array([every.index(view) for view in a.views])
        merged[name] = tta.merged(jax.tree.map(lambda x, some=some: x[some], found), a.merge, iou)
    return merged

  windows = {name: [] for name in asked}
  for batch in mixture.eval_batches(config, task, batch_size=BATCH):
    (found,) = look(variables, batch['images'], batch['shapes'])
    for name, seen in jax.device_get(answers(found)).items():
      for row, (image, truth) in enumerate(zip(batch['ids'], batch['truth'], strict=True)):
        window = {'id': image, 'offset': tuple(map(int, batch['offsets'][row])), 'truth': truth}
        scale = float(batch['scales'][row])
        windows[name].append(window | inference.to_image(seen, row, own, scale, window['offset']))
  return windows


def _seconds(model, config, task, variables, augmentation):
  """Time of a task's first batch, once compiled."""
  step = tta.detect_step(model, config, task, augmentation)
  batch = next(iter(mixture.eval_batches(config, task, batch_size=BATCH)))
  times = []
  for _ in range(1 + REPEATS):
    start = time.perf_counter()
    jax.block_until_ready(step(variables, batch['images'], batch['shapes']))
    times.append(time.perf_counter() - start)
  return min(times[1:])
