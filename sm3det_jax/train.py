"""The training loop: one jitted step on a mesh, logs, checkpoints, exact restarts."""

import contextlib
import functools
import itertools
import json
import logging
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from data_pipelines import mixture, radiometry
from data_pipelines.errors import NotFiniteError, UserError
from data_pipelines.task import Task
from sm3det_jax import checkpoint, logs, sharding
from sm3det_jax.config import batch_scaling, copied
from sm3det_jax.config.phases import phase_at
from sm3det_jax.interop import convert, pretrained
from sm3det_jax.model import build
from sm3det_jax.optim import optimizer, phases
from sm3det_jax.optim.training import abstract_state, create_sharded_state, sharded_step

MAX_BAD_STEPS = 10  # in a row
SIGTERM_EXIT_CODE = 128 + signal.SIGTERM

logger = logging.getLogger(__name__)


def train(
  config: ConfigDict,
  workdir: str | os.PathLike,
  on_log: Callable[[int, dict[str, float]], None] | None = None,
  tasks: dict[str, Task] | None = None,
) -> dict[str, float]:
  """Trains the model of `config`, or goes on where `workdir`'s newest checkpoint stands.

  A run that was stopped in any way goes on exactly: the same losses and parameters, bit for bit on
  one machine, as without the stop. A step whose loss or gradient is not finite changes nothing but
  its count.

  Args:
    config: see sm3det_jax.config.
    workdir: where config, checkpoints and logs go.
    on_log: called with the steps done and the metrics whenever they are logged.
    tasks: from `mixture.open_tasks`, where the data are open already.

  Returns:
    The last metrics: 'total', 'loss/<task>/<term>', 'multiplier/<group>', 'lr', 'grad_norm',
    'skipped' (steps so far), 'images_per_second', 'data_wait' (share of the time).

  Raises:
    UserError: a config that does not hold together, divide over the devices, or belong to
      `workdir`; changed data.
    NotFiniteError: `MAX_BAD_STEPS` steps in a row without a finite loss and gradient.
    SystemExit: after SIGTERM, with code 143, the state saved; a second SIGTERM ends at once.
  """
  sharding.start_processes()
  config = batch_scaling.scaled(config)
  begun = (pathlib.Path(workdir) / 'config.json').exists()
  config = pretrained.with_experts_of(config, workdir if begun else config.init_from)
  for name, task in config.tasks.items():  # a run's config has the numbers that it trains with
    config.tasks[name] = radiometry.resolved(config.data_root, name, task)
  model = build(config)
  mesh = sharding.make_mesh(config.mesh)
  sharding.check_mesh(config, mesh)
  checkpoint.open_workdir(config, workdir)
  checkpoints = checkpoint.manager(workdir, config.keep_checkpoints)
  with checkpoints, _sigterm() as terminated:
    return _run(config, workdir, model, mesh, checkpoints, terminated, on_log, tasks)


def _run(config, workdir, model, mesh, checkpoints, terminated, on_log, tasks):
  tx = optimizer.build(config, model.term_groups)
  like = abstract_state(config, model, tx, mesh)
  optimizer.log_parameters(like['model']['variables']['params'], model.term_groups)
  tasks = tasks or mixture.open_tasks(config)
  position = {'seed': config.seed, 'fingerprint': mixture.fingerprint(config, tasks)}
  state, start = _restored(workdir, checkpoints, like, position['fingerprint'])
  if state is None:
    state = create_sharded_state(config, model, tx, mesh)
    if config.init_from:
      state['model'] = convert.start_from(state['model'], config)
  step_of = functools.cache(lambda phase: sharded_step(config, model, tx, mesh, phase))
  steps, phase = config.optim.steps, None
  logger.info('steps %d to %d on mesh %s', start, steps, dict(mesh.shape))
  window, metrics, saved = logs.Window(config.batch_size), {}, start

  def save(done):
    nonlocal saved
    if saved != done:
      checkpoint.save(checkpoints, state, position | {'step': done})
      saved = done

  with (
    jax.set_mesh(mesh),
    logs.Logs(workdir, start, steps, active=jax.process_index() == 0) as log,
    contextlib.closing(_batches(config, mesh, start, tasks)) as batches,
  ):
    batch = next(batches) if start < steps else None
    for done in range(start + 1, steps + 1):
      if phase != (phase := phase_at(config, done - 1)) and config.phases:
        phases.log(config, like['model']['variables']['params'], phase, done - 1)
      with jax.profiler.StepTraceAnnotation('train', step_num=done):
        state, step_metrics = step_of(phase)(state, batch)
      window.add(step_metrics)
      if done < steps:
        batch = window.timed(next, batches)  # goes to the device while it computes
      if done % config.log_every == 0 or done == steps:
        metrics = window.close()
        log.write(done, metrics)
        _stop_if_diverged(metrics, workdir, done)
        if on_log:
          on_log(done, metrics)
      stop = _must_stop(terminated, done)
      if done % config.checkpoint_every == 0 or done == steps or stop:
        save(done)
      if stop:
        checkpoints.wait_until_finished()
        logger.warning('SIGTERM: saved step %d', done)
        raise SystemExit(SIGTERM_EXIT_CODE)
  return metrics or _last_metrics(workdir)


def micro_batches(
  config: ConfigDict, step: int, host: int, hosts: int, tasks: dict[str, Task] | None = None
) -> Iterator[dict]:
  """`mixture.train_batches`, with the micro-batches of a step stacked where there are several.

  Micro-batch `j` of `n` of step `i` is batch `i n + j` of a run with batches a n-th as large. With
  tasks in their ratio a step so has the samples that it has without accumulation.
  """
  count, config = config.optim.accumulate, copied(config)
  config.batch_size //= count
  batches = mixture.train_batches(config, step * count, host, hosts, tasks)
  with contextlib.closing(batches):
    while parts := list(itertools.islice(batches, count)):
      yield parts[0] if count == 1 else jax.tree.map(lambda *x: np.stack(x), *parts)


def _batches(config, mesh, start, tasks):
  """Global batches on the devices, from step `start` on."""
  host, hosts = jax.process_index(), jax.process_count()
  for batch in micro_batches(config, start, host, hosts, tasks):
    yield sharding.put_batch(batch, mesh, config.optim.accumulate)


def _restored(workdir, checkpoints, like, fingerprint):
  """(state, step) of the newest checkpoint; (None, 0) where there is none."""
  found = checkpoint.restore(checkpoints, like)
  if found is None:
    return None, 0
  state, position = found
  if position['fingerprint'] != fingerprint:
    raise UserError(
      f'{workdir}: the data of this run have changed since step {position["step"]} (fingerprint '
      f'{position["fingerprint"]} then, {fingerprint} now), so it cannot go on exactly; prepare '
      'them as they were, or start a new --workdir'
    )
  logger.info('going on from step %d of %s', position['step'], workdir)
  return state, position['step']


def _stop_if_diverged(metrics, workdir, done):
  if metrics['bad_in_a_row'] < MAX_BAD_STEPS:
    return
  path = pathlib.Path(workdir) / f'not_finite_{done}.json'
  if jax.process_index() == 0:
    dump = {'step': done, 'batches': f'mixture.train_batches(config, step) up to {done - 1}'}
    checkpoint.write_atomically(path, json.dumps(dump | {k: str(v) for k, v in metrics.items()}))
  terms = {k: v for k, v in metrics.items() if k.startswith('loss/') and not np.isfinite(v)}
  raise NotFiniteError(
    f'{int(metrics["bad_in_a_row"])} steps in a row up to {done} without a finite loss and '
    f'gradient; terms that are not finite: {", ".join(terms) or "none, the gradient is not"}; '
    f'all metrics are in {path}, parameters and checkpoints are as before those steps'
  )


def _must_stop(terminated, done):
  if jax.process_count() == 1:
    return terminated.is_set()
  return multihost_utils.reached_preemption_sync_point(done)  # at the same step everywhere


@contextlib.contextmanager
def _sigterm():
  """An event that the first SIGTERM sets; the second one finds the handler of before."""
  event = threading.Event()
  if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
    yield event  # among several processes JAX itself listens
    return

  def handle(*_):
    event.set()
    signal.signal(signal.SIGTERM, before or signal.SIG_DFL)

  before = signal.signal(signal.SIGTERM, handle)
  try:
    yield event
  finally:
    signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _last_metrics(workdir):
  """Of a run that had nothing left to do."""
  lines = logs.read(workdir)
  return {k: v for k, v in lines[-1].items() if k != 'step'} if lines else {}
