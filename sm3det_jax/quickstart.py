"""The quickstart: draw scenes, prepare them, train a small SM3Det, evaluate it, report."""

import logging
import os
import pathlib

import rich

from data_pipelines import prepare, scenes
from data_pipelines.errors import UserError
from sm3det_jax import checkpoint, config, evaluate, logs, train
from sm3det_jax.analysis import routing
from sm3det_jax.metrics import table
from sm3det_jax.viz import report

COMPILING = 2  # minutes, of the step, on two CPU cores
REST = 2  # minutes of evaluation and report there, compiling included
SEED = 0  # of the scenes
SCENES = 480  # a modality, to train on; at most
SOURCES = {'sar': 'coco', 'optical': 'dota_txt', 'infrared': 'dronevehicle'}

logger = logging.getLogger(__name__)


def scene_counts(c: config.ConfigDict) -> dict[str, int]:
  """{split: scenes a modality} for a run: as many as training looks at, in bounds."""
  train = min(max(c.optim.steps * c.batch_size // len(c.tasks), 24), SCENES)
  return {'train': train, 'test': max(train // 10, 6)}


def run(c: config.ConfigDict, workdir: str | os.PathLike, counts: dict[str, int]) -> pathlib.Path:
  """Does everything; what a stopped run has done stays done.

  Args:
    c: `configs/quickstart.py`, changed or not, or that of another family with `small=1`;
      `data_root` becomes `workdir/data`.
    workdir: gets scenes/, data/, checkpoints, metrics.json and report.html.
    counts: {split: scenes a modality}.

  Returns:
    Path of the report page.

  Raises:
    UserError: a task of `c` reads other data than drawn scenes.
  """
  workdir = pathlib.Path(workdir)
  draw_and_prepare(c, workdir, counts)
  train.train(c, workdir, on_log=_announced(c, workdir))
  c, variables = checkpoint.restore_for_inference(workdir)
  metrics = evaluate.evaluate(c, variables, out_dir=workdir, progress=True)
  if any(c.moe.blocks):
    routing.write(routing.measure(c, variables), workdir / 'routing')
  page = report.write(workdir, logs.read(workdir), 'SM3Det quickstart')
  rich.print(table.render(metrics))
  return page


def _announced(c, workdir):
  """Says that compiling comes first; what `train` is to call, which says how long all will take."""
  lines, told = logs.read(workdir), []
  if not lines or lines[-1]['step'] < c.optim.steps:
    logger.info('compiling the training step: about %d minutes the first time', COMPILING)

  def on_log(done, metrics):
    if not told and done < c.optim.steps:
      minutes = (c.optim.steps - done) * c.batch_size / metrics['images_per_second'] / 60
      logger.info(
        'training: about %.0f minutes more; then about %d for evaluation and report',
        max(minutes, 1), REST,
      )  # fmt: skip
    told.append(done)

  return on_log


def draw_and_prepare(c: config.ConfigDict, workdir: pathlib.Path, counts: dict[str, int]) -> None:
  """Points `c` to `workdir/data`; draws and prepares the scenes there unless it has them."""
  c.data_root = str(workdir / 'data')
  c.mesh.data = 1  # one device is enough, however many there are
  config.check(c)
  drawn = [f'scenes_{modality}' for modality in SOURCES]
  for name, t in c.tasks.items():
    if t.dataset not in drawn:
      raise UserError(
        f'config.tasks.{name}.dataset={t.dataset!r}: what is drawn here is {", ".join(drawn)}; the '
        "argument small=1 makes a family's config of them, as in --config=sm3det:small=1"
      )
  done = workdir / 'data' / 'scenes.done'
  if done.exists():
    return
  logger.info('drawing %s scenes a modality', counts)
  size = next(iter(c.tasks.values())).size[0]
  scenes.write(workdir / 'scenes', SEED, counts, size)
  for modality, form in SOURCES.items():
    made = prepare.prepare(
      form, workdir / 'scenes' / modality, c.data_root, name=f'scenes_{modality}',
      classes=scenes.CLASSES[modality],
    )  # fmt: skip
    logger.info('%s', made.table())
  done.touch()
