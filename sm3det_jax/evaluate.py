"""Scores of a model on all its tasks, one command: metrics.json, tables, curves, pictures.

Windows are detected by all devices of all processes, each window by one of them; then every process
has all detections and the same scores, and the first one writes.
"""

import logging
import os
import pathlib
import pickle
from typing import Any

import jax
import numpy as np
import rich.console
import rich.progress
from jax.experimental import multihost_utils

from data_pipelines import boxes as box_lib
from data_pipelines import mixture
from data_pipelines import objects as objects_lib
from data_pipelines.errors import UserError
from data_pipelines.task import Task
from sm3det_jax import logs, preprocess, sharding
from sm3det_jax.config import ConfigDict
from sm3det_jax.detector import M2Det, build
from sm3det_jax.inference import own_labels, reconstruct_step, to_image
from sm3det_jax.metrics import Result, coco, dota, merge, table
from sm3det_jax.metrics import pictures as similarity
from sm3det_jax.prediction import tta
from sm3det_jax.viz import draw, figures

PROTOCOLS = ('paper_patches', 'devkit')
PICTURES = 4  # of each task
SHOWN = 0.3  # score from which a detection is in a picture

logger = logging.getLogger(__name__)


def evaluate(
  config: ConfigDict,
  variables: dict,
  *,
  detector: M2Det | None = None,
  mesh: jax.sharding.Mesh | None = None,
  split: str | None = None,
  out_dir: str | os.PathLike | None = None,
  protocols: tuple[str, ...] = PROTOCOLS,
  batch_size: int = 8,
  pictures: int = PICTURES,
  augmentation: tta.Augmentation | None = None,
  progress: bool = False,
) -> dict:
  """Detects in every image of every task and scores what is found.

  HBB tasks are scored by COCO's rules on whole images. OBB tasks by each of `protocols`:
  `paper_patches` on the windows that the model sees, `devkit` on whole images whose windows are
  merged by rotated NMS. Tasks of images by the PSNR and SSIM of `model.reconstruct`.

  Args:
    config: the model's, with `data_root` and the tasks' test sets.
    variables: Flax dict, the same on all processes.
    detector: default `build(config)`.
    mesh: default `sharding.evaluation_mesh(config.mesh)`.
    split: of every task, instead of its `test.split`.
    out_dir: gets metrics.json, pr_curves.png, pictures/<task>_<n>.png (ground truth beside
      detections) and, for OBB tasks, task1/<task>/Task1_<class>.txt; None writes nothing.
    protocols: the first gives the task's `map`, `map50`, `map75`, the rest stand in its
      `protocols`.
    batch_size: windows at once, rounded up to as many for each device.
    pictures: of each task.
    augmentation: of `tta.parse`: detects in views of every window too; tasks of images have none.
    progress: show a bar, on a terminal.

  Returns:
    What metrics.json holds: {'tasks': {task: {'map', 'map50', 'map75', 'classes': {..}, ..}},
    'overall': {'map', 'map50', 'map75'}, 'h_map'}; AP in 0..1. With an augmentation, its 'tta' too:
    {'views', 'merge'}.

  Raises:
    UserError: an unknown protocol; a data set that does not fit its task.
    FileNotFoundError: no such data set.
  """
  unknown = set(protocols) - set(dota.PROTOCOLS)
  if unknown or not protocols:
    raise UserError(f'protocols={protocols}: expected some of {sorted(dota.PROTOCOLS)}')
  detector, mesh = detector or build(config), mesh or sharding.evaluation_mesh(config.mesh)
  variables = sharding.put_tree(variables, mesh)
  batch_size = -(-batch_size // mesh.size) * mesh.size
  first = jax.process_index() == 0
  out = None if out_dir is None or not first else pathlib.Path(out_dir)
  summaries, curves = {}, {}
  for name, c in config.tasks.items():
    data = Task(config, name, 'test', split)
    total = len(data.pool)
    host, hosts = jax.process_index(), jax.process_count()
    batches = mixture.eval_batches(config, name, split, batch_size, host, hosts, data)
    if progress and first and logs.on_terminal():
      console = rich.console.Console(stderr=True)
      batches = rich.progress.track(
        batches, f'evaluate {name}', -(-total // batch_size), console=console
      )
    evaluator = EVALUATORS[c.kind](detector, config, name, tuple(protocols), augmentation)
    windows, examples = _windows(evaluator, name, variables, mesh, batches, total, pictures)
    summaries[name] = evaluator.score(windows, data) | {'windows': total}
    if out:
      curves |= evaluator.write(out)
      for k, picture in enumerate(examples):
        draw.save(out / 'pictures' / f'{name}_{k}.png', picture)
  metrics = table.combine(summaries)
  if augmentation:
    metrics['tta'] = {'views': augmentation.text, 'merge': augmentation.merge}
  if out:
    table.write(metrics, out / 'metrics.json')
    if curves:
      figures.pr_curves(curves, out / 'pr_curves.png')
  return metrics


def score(
  windows: list[dict], whole: list[dict], box: str, classes: tuple[str, ...], protocols
) -> tuple[Result, list[dict]]:
  """Scores one task.

  Args:
    windows: per window `id` and `offset` (x, y) of the window in that image, detections `boxes`,
      `scores`, `labels` and objects `truth`, both in the image's pixels.
    whole: truth of whole images.
    box: 'hbb' or 'obb'.
    classes: the task's.
    protocols: of oriented boxes; HBB tasks have COCO's only.

  Returns:
    (result by the first protocol, its summary with `protocols` for the others; detections of whole
    images).
  """
  if box == 'hbb':
    merged = merge.merge(windows, merge.IOU[box])
    return coco.evaluate(merged, whole, classes), merged
  patches = [w | {'id': (w['id'], *w['offset'])} for w in windows]
  patch_truth = [w['truth'] | {'id': p['id']} for w, p in zip(windows, patches, strict=True)]
  windows, whole = merge.uncut(windows, whole)
  merged = merge.merge(windows, merge.IOU[box])
  data = {'paper_patches': (patches, patch_truth), 'devkit': (merged, whole)}
  first, *rest = (dota.evaluate(*data[protocol], classes, protocol) for protocol in protocols)
  others = {r.summary['protocol']: r.summary for r in rest}
  return first._replace(summary=first.summary | {'protocols': others}), merged


class Boxes:
  """Evaluates a task of boxes: detections, scored by COCO's or the DOTA protocols.

  What an evaluator of any kind has: `step`, the pass on the device, (variables, images, shapes) ->
  arrays [n, ...]; `seen` and `picture`, what of it counts of one window and how that is shown;
  `score` over all windows; `write`, further files and curves.
  """

  def __init__(self, model: Any, config: ConfigDict, task: str, protocols, augmentation=None):
    self.task, self.config, self.protocols = task, config.tasks[task], protocols
    self.step = tta.detect_step(model, config, task, augmentation)
    self.own = own_labels(config, task)

  def seen(self, found: Any, row: int, batch: dict, window: dict) -> dict:
    """`window` (`id`, `offset`, `truth`) with its detections in the pixels of the whole image."""
    return window | to_image(found, row, self.own, float(batch['scales'][row]), window['offset'])

  def picture(self, found: Any, row: int, batch: dict, window: dict) -> np.ndarray | None:
    """Ground truth, regions to ignore dashed, beside detections; None without any object."""
    truth, scale = window['truth'], float(batch['scales'][row])
    if not objects_lib.valid({'labels': truth['labels']} | truth).any():
      return None
    shift, quads = np.tile(window['offset'], 4), box_lib.to_polygon(window['boxes'])
    shown = window['scores'] >= SHOWN
    return draw.compare(
      preprocess.shown(_unpadded(batch, row), self.config),
      truth | {'polygons': (truth['polygons'] - shift) * scale},
      {
        'polygons': (quads[shown] - shift) * scale,
        'labels': window['labels'][shown],
        'scores': window['scores'][shown],
      },
      tuple(self.config.classes),
      window['id'],
    )

  def score(self, windows: list[dict], data: Task) -> dict:
    """The summary of the task."""
    classes = tuple(self.config.classes)
    result, self.merged = score(
      windows, data.whole_truth(), self.config.kind, classes, self.protocols
    )
    self.curves = result.curves
    at_cap = sum(w['full'] for w in windows)  # the head's cap may have cost them detections
    return result.summary | {'windows_at_cap': at_cap}

  def write(self, out: pathlib.Path) -> dict:
    """Writes Task1 files of oriented boxes; returns {task: curves}."""
    if self.config.kind == 'obb':
      dota.write_task1(out / 'task1' / self.task, self.merged, tuple(self.config.classes))
    return {self.task: self.curves}


class Pictures:
  """Evaluates a task of images: what the model makes of them, by PSNR and SSIM of every window."""

  def __init__(self, model: Any, config: ConfigDict, task: str, protocols, augmentation=None):
    self.step, self.config = reconstruct_step(model, config, task), config.tasks[task]

  def seen(self, found: Any, row: int, batch: dict, window: dict) -> dict:
    """`window` with its `psnr` and `ssim`."""
    truth, made = self._pair(found, row, batch)
    return window | {'psnr': similarity.psnr(truth, made), 'ssim': similarity.ssim(truth, made)}

  def picture(self, found: Any, row: int, batch: dict, window: dict) -> np.ndarray:
    """The image beside what the model makes of it."""
    truth, made = self._pair(found, row, batch)
    return draw.beside(truth, np.rint(made).astype(truth.dtype))

  def _pair(self, found, row, batch):
    """The image, as the task's `input` has it, and what is made of it, in its range."""
    truth = preprocess.shown(_unpadded(batch, row), self.config)
    made = found[row, : truth.shape[0], : truth.shape[1]]
    return truth, np.clip(made, 0, similarity.peak_of(truth.dtype))

  def score(self, windows: list[dict], data: Task) -> dict:
    """The summary of the task: means over windows; PSNR None where one has no error at all."""
    psnr, ssim = (float(np.mean([w[key] for w in windows])) for key in ('psnr', 'ssim'))
    return {'psnr': psnr if np.isfinite(psnr) else None, 'ssim': ssim}

  def write(self, out: pathlib.Path) -> dict:
    """There are no curves."""
    return {}


EVALUATORS = {'hbb': Boxes, 'obb': Boxes, 'image': Pictures}


def _unpadded(batch, row):
  height, width = batch['shapes'][row]
  return batch['images'][row, :height, :width]


def _windows(evaluator, task, variables, mesh, batches, total, pictures):
  """(every window once, with what counts of it; up to `pictures` of this process's as pictures)."""
  rounds, windows, examples = [], [], []
  total_here = -(-total // jax.process_count())
  for batch in batches:
    found = _found(evaluator.step, variables, mesh, batch)
    rounds.append(len(batch['ids']))
    for row, (name, truth) in enumerate(zip(batch['ids'], batch['truth'], strict=True)):
      window = {'id': name, 'offset': tuple(map(int, batch['offsets'][row])), 'truth': truth}
      windows.append(evaluator.seen(found, row, batch, window))
      # spread over the split
      if len(examples) < pictures and len(windows) > len(examples) * total_here // pictures:
        picture = evaluator.picture(found, row, batch, windows[-1])
        examples += [] if picture is None else [picture]
  windows = _of_all_processes(windows, rounds)
  different = len({(w['id'], w['offset']) for w in windows})
  if not len(windows) == different == total:
    raise RuntimeError(
      f'task {task}: {total} windows, evaluated {len(windows)}, {different} different'
    )
  return windows, examples


def _found(step, variables, mesh, batch):
  """Detections of this process's windows of a batch."""
  images, shapes = sharding.put_batch((batch['images'], batch['shapes']), mesh)
  with jax.set_mesh(mesh):
    found = step(variables, images, shapes)
  found = jax.tree.map(lambda x: jax.device_put(x, sharding.batch_sharding(mesh)), found)
  spec = sharding.batch_sharding(mesh).spec
  return jax.device_get(multihost_utils.global_array_to_host_local_array(found, mesh, spec))


def _of_all_processes(windows, rounds):
  """All processes' windows, in the order of the data; `rounds`: how many a batch had here."""
  if jax.process_count() == 1:
    return windows
  ends = np.cumsum(rounds)
  mine = [windows[end - n : end] for n, end in zip(rounds, ends, strict=True)]
  data = np.frombuffer(pickle.dumps(mine), np.uint8)
  sizes = multihost_utils.process_allgather(np.int64(len(data)))
  padded = np.pad(data, (0, sizes.max() - len(data)))
  parts = multihost_utils.process_allgather(padded)
  parts = [pickle.loads(part[:size].tobytes()) for part, size in zip(parts, sizes, strict=True)]
  return [w for batch in zip(*parts, strict=True) for part in batch for w in part]
