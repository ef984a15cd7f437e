"""What a run says while it trains: a bar or a line, TensorBoard, one line of JSON a window."""

import json
import logging
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from tensorboardX import SummaryWriter

from data_pipelines.atomic import write_atomically

KINDS = {  # of a step's metrics {kind: {name: value}}: what a window of steps has of them
  'mean': np.mean,
  'last': lambda values: values[-1],
  'max': np.max,
}

logger = logging.getLogger(__name__)


class Logs:
  """Writes metrics to `workdir/metrics.jsonl`, `workdir/tensorboard` and the screen.

  The screen is a bar on a terminal; elsewhere, in a file or a pipe, a line a `write`.
  A context manager. A run that goes on from step `start` first forgets the lines after it.

  Args:
    workdir: of the run.
    start: steps already done.
    steps: steps in all.
    active: False writes and shows nothing (all processes but the first).
  """

  def __init__(self, workdir: str | os.PathLike, start: int, steps: int, active: bool = True):
    self._active, self._steps, self._bar = active, steps, None
    if not active:
      return
    self._path = pathlib.Path(workdir) / 'metrics.jsonl'
    kept = [line for line in read(workdir) if line['step'] <= start]
    write_atomically(self._path, ''.join(json.dumps(line) + '\n' for line in kept))
    self._board = SummaryWriter(str(pathlib.Path(workdir) / 'tensorboard'), purge_step=start + 1)
    self._bar = _Bar(start, steps) if on_terminal() else None

  def __enter__(self):
    if self._bar:
      self._bar.live.start()
    return self

  def __exit__(self, *_):
    if self._bar:
      self._bar.live.stop()
    if self._active:
      self._board.close()

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """Appends the metrics after `step` steps; a value that is not finite becomes null."""
    if not self._active:
      return
    line = {'step': step} | {k: v if math.isfinite(v) else None for k, v in metrics.items()}
    with self._path.open('a') as file:
      file.write(json.dumps(line) + '\n')
    for name, value in metrics.items():
      self._board.add_scalar(name, value, step)
    if self._bar:
      self._bar.show(step, summary(metrics))
    else:
      logger.info('step %d/%d: %s', step, self._steps, summary(metrics))


class _Bar:
  """How far a run is, with its newest metrics below; on standard error, as all but results."""

  def __init__(self, start, steps):
    self._progress = Progress(
      TextColumn('train'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    )
    self._task = self._progress.add_task('train', total=steps, completed=start)
    self.live = Live(self._progress, console=Console(stderr=True), refresh_per_second=2)

  def show(self, step, text):
    self._progress.update(self._task, completed=step)
    self.live.update(Group(self._progress, Text(text)))


def on_terminal() -> bool:
  """Whether a person looks at standard error, and sees a bar there move."""
  return sys.stderr.isatty() and not Console(stderr=True).is_dumb_terminal


class Window:
  """Metrics of the steps since the last log, left on the device until they are wanted."""

  def __init__(self, images: int):
    self._images = images
    self._steps, self._compiled = [], False
    self._clock, self._waited, self._timed = time.perf_counter(), 0.0, 0

  def add(self, metrics: dict) -> None:
    """Adds a step that was dispatched, and waits for the one before it.

    Waiting bounds how many batches lie on the device at once.
    """
    self._steps.append(metrics)
    self._timed += 1
    if not self._compiled:
      jax.block_until_ready(metrics)
      logger.info('first step, compiled: %.1f s', time.perf_counter() - self._clock)
      self._compiled, self._timed, self._clock = True, 0, time.perf_counter()
    elif len(self._steps) > 1:
      jax.block_until_ready(self._steps[-2])

  def timed(self, function: Callable, *args):
    """Calls the function and counts its time as waiting for data."""
    start = time.perf_counter()
    value = function(*args)
    self._waited += time.perf_counter() - start
    return value

  def close(self) -> dict[str, float]:
    """Each metric by its kind, means over good steps alone, and the speed; starts anew."""
    rows, metrics = jax.device_get(self._steps), {}
    good = [row for row in rows if not row['max']['bad_in_a_row']]
    for kind, reduce in KINDS.items():
      for name in {name: None for row in rows for name in row[kind]}:  # a step may lack a task
        of = lambda rows, k=kind, name=name: [row[k][name] for row in rows if name in row[k]]
        metrics[name] = float(reduce(kind == 'mean' and of(good) or of(rows)))
    elapsed = time.perf_counter() - self._clock
    metrics['images_per_second'] = self._images * self._timed / elapsed
    metrics['data_wait'] = self._waited / elapsed
    self._steps, self._timed, self._waited = [], 0, 0.0
    self._clock = time.perf_counter()
    return metrics


def summary(metrics: dict[str, float]) -> str:
  """Loss of every task, learning rate and speed in one line; the rest is in metrics.jsonl."""
  losses = {}
  for name, value in metrics.items():
    kind, _, rest = name.partition('/')
    if kind == 'loss':
      task = rest.split('/')[0]
      losses[task] = losses.get(task, 0.0) + value
  text = ' '.join(f'{task} {value:.4g}' for task, value in losses.items())
  speed = f'{metrics["images_per_second"]:.1f} images/s'
  return f'loss {metrics["total"]:.4g} ({text})  lr {metrics["lr"]:.3g}  {speed}'


def read(workdir: str | os.PathLike) -> list[dict]:
  """The lines of `workdir/metrics.jsonl`, but for one torn when the run was killed."""
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  lines = []
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      lines.append(json.loads(line))
    except json.JSONDecodeError:
      logger.warning('%s: left out a torn line after %d whole ones', path, len(lines))
  return lines
