"""`sm3det pretrain`: masked-image pre-training, with drawn scenes where there are no data."""

import logging
import os
import pathlib

import jax
import numpy as np
from jax.experimental import multihost_utils

from data_pipelines import tiles, transforms
from data_pipelines.errors import UserError
from data_pipelines.scenes import sensors
from data_pipelines.source import prepared
from data_pipelines.task import Task
from sm3det_jax import checkpoint, config, logs, model, sharding, simmim, train
from sm3det_jax.viz import reconstructions, report

SEED = 0  # of the scenes
SCENES = {'train': 48, 'test': 4}  # a modality
SIDE = 320  # px, of a scene: nine tiles
SHOWN = 3  # tiles of a modality in the report
EPOCH = 10**9  # masks of the report: a key that no step of the training has

logger = logging.getLogger(__name__)


def run(c: config.ConfigDict, workdir: str | os.PathLike) -> pathlib.Path:
  """Trains and writes the report; what a stopped run has done stays done.

  Args:
    c: with `model` 'simmim'. Where `data_root` has none of its data sets, `data_root` becomes
      `workdir/data`, with tiles of drawn scenes.
    workdir: gets checkpoints, logs, reconstructions/ and report.html.

  Returns:
    Path of the report page.

  Raises:
    UserError: another model; data for some of the modalities alone.
  """
  if c.model != 'simmim':
    raise UserError(f'config.model={c.model!r} is no masked-image model: `sm3det train` takes it')
  workdir = pathlib.Path(workdir)
  sharding.start_processes()
  ensure_data(c, workdir)
  train.train(c, workdir)
  if jax.process_index():
    return workdir / 'report.html'
  c, variables = checkpoint.restore_for_inference(workdir)
  write_pictures(c, variables, workdir / 'reconstructions')
  return report.write(workdir, logs.read(workdir), 'Masked-image pre-training')


def ensure_data(c: config.ConfigDict, workdir: pathlib.Path) -> None:
  """Leaves `c.data_root` where it has data sets of `c`; else points it to tiles of drawn scenes.

  Raises:
    UserError: it has some of them but not all.
  """
  missing = [name for name, task in c.tasks.items() if not prepared(c.data_root, task.dataset)]
  if not missing:
    return
  if len(missing) < len(c.tasks):
    raise UserError(
      f'{c.data_root} has no {", ".join(c.tasks[name].dataset for name in missing)}: make it with '
      '`sm3det prepare --dataset=tiles --modality=..`, or leave those modalities out'
    )
  if strangers := [name for name in c.tasks if name not in sensors.DRAWN]:
    raise UserError(
      f'{c.data_root} has no {c.tasks[strangers[0]].dataset}, and no scenes are drawn of '
      f'{strangers[0]!r}; there are some of {", ".join(sensors.DRAWN)}'
    )
  root = workdir / 'data'
  logger.info('%s has no tiles of this config: training on drawn scenes, in %s', c.data_root, root)
  c.data_root = str(root)
  if jax.process_index() == 0:
    _draw(c, workdir)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('scenes')


def _draw(c, workdir):
  new = [name for name, task in c.tasks.items() if not prepared(c.data_root, task.dataset)]
  if not new:
    return
  logger.info('drawing %s scenes each of %s', SCENES, ', '.join(new))
  sensors.write(workdir / 'scenes', SEED, SCENES, SIDE, new)
  for name in new:
    made = tiles.prepare(
      name, workdir / 'scenes' / name, c.data_root, name=c.tasks[name].dataset,
      splits={split: split for split in SCENES},
    )  # fmt: skip
    logger.info('%s', made.table())


def write_pictures(c: config.ConfigDict, variables: dict, folder: pathlib.Path) -> None:
  """Writes `folder/<modality>.png`: what the model makes of tiles of the test split, else train.

  Args:
    c: of the run.
    variables: its model's.
    folder: made where it is missing.
  """
  net = model.build(c)
  batch = net.prepare({name: {'images': _tiles(c, name)} for name in c.tasks})
  key = jax.random.fold_in(jax.random.key(c.seed), EPOCH)
  batch = net.masked(batch, key)
  found = jax.jit(net.reconstruct)(variables, batch)
  for name, b in batch.items():
    power = c.tasks[name].target == 'power'
    target = simmim.power(b['images']) if power else b['images']
    arrays = (b['images'], b['masks'], found[name], target)
    reconstructions.write(folder / f'{name}.png', *map(np.asarray, arrays), power=power)


def _tiles(c, name):
  """Evenly from a split, uncropped [n, H, W, bands]."""
  try:
    task = Task(c, name, 'test')
  except UserError:  # it has none, as sets to train on may
    task = Task(c, name, 'test', split=c.tasks[name].train.split)
  chosen = np.linspace(0, len(task.source) - 1, SHOWN).astype(int)
  samples = [transforms.test_transform(task.sample(i), task.config) for i in chosen]
  return task.stack(samples, SHOWN)[0]['images']
