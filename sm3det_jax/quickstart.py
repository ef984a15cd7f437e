"""The quickstart: draw scenes, prepare them, train a small SM3Det, evaluate it, report."""

import logging
import os
import pathlib

import rich

from data_pipelines import prepare, scenes
from sm3det_jax import checkpoint, config, evaluate, logs, train
from sm3det_jax.analysis import routing
from sm3det_jax.metrics import table
from sm3det_jax.viz import report

SEED = 0  # of the scenes
SCENES = {'train': 480, 'test': 48}  # a modality
SOURCES = {'sar': 'coco', 'optical': 'dota_txt', 'infrared': 'dronevehicle'}

logger = logging.getLogger(__name__)


def shortened(c: config.ConfigDict, steps: int) -> config.ConfigDict:
  """The same run in fewer (or more) steps: warm-ups and milestones move along."""
  scale = lambda n: max(n * steps // c.optim.steps, 1)
  c.optim.milestones = tuple(map(scale, c.optim.milestones))
  c.optim.warmup_steps, c.dla.warmup_steps = scale(c.optim.warmup_steps), scale(c.dla.warmup_steps)
  c.optim.steps = steps
  return c


def run(
  c: config.ConfigDict, workdir: str | os.PathLike, counts: dict[str, int] = SCENES
) -> pathlib.Path:
  """Does everything; what a stopped run has done stays done.

  Args:
    c: `configs/quickstart.py`, changed or not; `data_root` becomes `workdir/data`.
    workdir: gets scenes/, data/, checkpoints, metrics.json and report.html.
    counts: {split: scenes a modality}.

  Returns:
    Path of the report page.
  """
  workdir = pathlib.Path(workdir)
  draw_and_prepare(c, workdir, counts)
  train.train(c, workdir)
  c, variables = checkpoint.restore_for_inference(workdir)
  metrics = evaluate.evaluate(c, variables, out_dir=workdir, progress=True)
  routing.write(routing.measure(c, variables), workdir / 'routing')
  page = report.write(workdir, logs.read(workdir), 'SM3Det quickstart')
  rich.print(table.render(metrics))
  return page


def draw_and_prepare(c: config.ConfigDict, workdir: pathlib.Path, counts: dict[str, int]) -> None:
  """Points `c` to `workdir/data`; draws and prepares the scenes there unless it has them."""
  c.data_root = str(workdir / 'data')
  c.mesh.data = 1  # one device is enough, however many there are
  config.check(c)
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
