"""Which objects of a data set the anchors of a config reach, class by class and size by size."""

import numpy as np
from ml_collections import ConfigDict

from data_pipelines import objects as objects_lib
from data_pipelines import tiling, transforms
from data_pipelines.errors import UserError
from sm3det_jax.analysis import coverage
from sm3det_jax.analysis.doctor.dataset import Dataset
from sm3det_jax.analysis.doctor.summary import SIDES, bins
from sm3det_jax.heads import head_class

WINDOWS = 256  # images or windows with objects that are looked at


def shares(d: Dataset, config: ConfigDict) -> dict:
  """{task: what its anchors reach} of the tasks of the data set, or else of its kind of boxes.

  Objects are seen as in training, cut into the task's windows and scaled to its size, but neither
  flipped nor turned. A task's value is a dict: `share` of `objects` reached, `what` reached means,
  and `classes` and `sides`: {class, or bin of the root of the area in the task's pixels: (reached,
  objects)}.

  Raises:
    UserError: no task of the config has such boxes.
  """
  tasks = {n: c for n, c in config.tasks.items() if 'head' in c and c.kind == d.box}
  if not tasks:
    kinds = ', '.join(f'{n}: {c.kind}' for n, c in config.tasks.items())
    raise UserError(f'--config: no task has boxes of kind {d.box!r} as {d.name} has ({kinds})')
  own = {name: c for name, c in tasks.items() if c.dataset == d.name}
  return {name: _share(d, c) for name, c in (own or tasks).items()}


def _share(d, c):
  reached = coverage.reached(c)
  bin_names, classes, sides = bins(SIDES), {}, {}
  for objects in _windows(d, c):
    boxes = np.zeros((c.max_objects, objects['boxes'].shape[1]), np.float32)
    count = min(len(objects['boxes']), c.max_objects)
    boxes[:count] = objects['boxes'][:count]
    hits = np.asarray(reached(boxes, np.arange(c.max_objects) < count))[:count]
    wh = boxes[:count, 2:] - boxes[:count, :2] if d.box == 'hbb' else boxes[:count, 2:4]
    side = np.searchsorted(SIDES, np.sqrt(wh.prod(1)), side='right') - 1
    for hit, label, k in zip(hits.tolist(), objects['labels'][:count], side, strict=True):
      for table, key in ((classes, d.classes[label]), (sides, bin_names[k])):
        before = table.get(key, (0, 0))
        table[key] = before[0] + hit, before[1] + 1
  hits, total = (sum(pair[i] for pair in classes.values()) for i in (0, 1))
  return dict(
    share=hits / max(total, 1),
    objects=total,
    what=head_class(c.head.type).REACHED,
    classes={name: classes[name] for name in d.classes if name in classes},
    sides={name: sides[name] for name in bin_names if name in sides},
  )


def _windows(d, c):
  """Objects of up to `WINDOWS` windows of training images, as the task sees them."""
  usable, left = np.flatnonzero(d.sound & (d.objects['label'] >= 0)), WINDOWS
  everything = {'labels': d.objects['label']} | {k: d.objects[k] for k in ('boxes', 'polygons')}
  train = 'train' in d.splits
  images = [k for k, i in enumerate(d.images) if i.look and (i.split == 'train' or not train)]
  for k in np.random.default_rng(0).permutation(images).tolist():
    first, last = np.searchsorted(d.objects['image'][usable], (k, k + 1))
    rows, look = usable[first:last], d.images[k].look
    found = tiling.windows(look.height, look.width, c.train.tile.size, c.train.tile.overlap)
    quads = d.objects['polygons'][rows]
    inside = tiling.kept_fraction(quads, found) >= (c.train.tile.keep if len(found) > 1 else 0)
    for (x1, y1, x2, y2), kept in zip(found.tolist(), inside, strict=True):
      objects = objects_lib.moved(objects_lib.take(everything, rows[kept]), -x1, -y1)
      blank = np.broadcast_to(np.zeros((), np.uint8), (y2 - y1, x2 - x1, 1))
      sample = transforms.resize_keep_ratio(dict(image=blank, objects=objects), c.size)
      objects = transforms.filter_small(sample, c.train.min_side)['objects']
      if len(objects['boxes']):
        yield objects
        left -= 1
      if not left:
        return
