"""Images of a data set cut into patches on disk, named `<image>__<rate>__<x>___<y>`.

Training cuts windows as it reads (`tile` of a task), by the same rule and without a second copy of
the images. Patches are for other tools.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from data_pipelines import objects as objects_lib
from data_pipelines import tiling
from data_pipelines.builders import decisions
from data_pipelines.builders.decisions import Decisions
from data_pipelines.dataset import convert, files
from data_pipelines.errors import UserError
from data_pipelines.raw import Collected
from data_pipelines.writers import Labelled


def tile(
  c: Collected,
  out,
  *,
  to: str = 'dota_txt',
  size: int = 800,
  overlap: int = 200,
  keep: float = 0.7,
  rates: Sequence[float] = (1.0,),
  convention: str | None = None,
  how: Decisions = decisions.AUTO,
) -> convert.Report:
  """Writes every window of every image as a file, with the objects that lie in it.

  Args:
    c: what `prepare.collect` found.
    out: new or empty folder.
    to: format of the labels.
    size, overlap: of the windows, px of the resized image.
    keep: share of its area that an object must have in a window (`data_pipelines.tiling`).
    rates: the image is resized by each.
    convention, how: as for `convert`.

  Raises:
    UserError: numbers that cannot be, and what `convert.save` refuses.
  """
  if size < 1 or not 0 < keep <= 1:
    raise UserError(f'expected --size from 1 on and --keep in (0, 1], not {size} and {keep:g}')
  tiling.windows(1, 1, size, overlap)  # says what is wrong with the overlap
  for rate in rates:
    patch = tiling.parse_patch(f'a__{rate:g}__0___0')
    if not (patch and math.isclose(patch[1], rate) and rate > 0):
      raise UserError(f'--rates={rate:g}: expected numbers above 0 and below 16')

  if len({f'{rate:g}' for rate in rates}) < len(rates):
    raise UserError(f'--rates={",".join(f"{r:g}" for r in rates)}: a rate twice')

  def stream(a, folder, c):
    pixels, found = files.read(a), convert.objects(a, c)
    for rate in rates:
      yield from _patches(a.id, folder, pixels, found, rate, size, overlap, keep)

  return convert.save(c, to, out, stream, convention=convention, how=how)


def _patches(id, folder, pixels, found, rate, size, overlap, keep):
  scale = np.array([rate] * 4 + [1.0] * (found['boxes'].shape[1] - 4), np.float32)
  polygons = found['polygons'] * np.float32(rate)
  found = found | dict(boxes=found['boxes'] * scale, polygons=polygons)
  pixels = _resized(pixels, rate)
  windows = tiling.windows(*pixels.shape[:2], size, overlap)
  kept = tiling.kept_fraction(polygons, windows) >= keep
  for (x1, y1, x2, y2), rows in zip(windows.tolist(), kept, strict=True):
    patch = f'{id}__{rate:g}__{x1}___{y1}'
    path = files.write(files.inside(folder, patch), pixels[y1:y2, x1:x2])
    inside = objects_lib.moved(objects_lib.take(found, rows), -x1, -y1)
    file = path.relative_to(folder).as_posix()
    yield Labelled(patch, file, y2 - y1, x2 - x1, **inside)


def _resized(pixels, rate):
  if rate == 1:
    return pixels
  if pixels.dtype not in (np.uint8, np.uint16, np.int16, np.float32, np.float64):
    raise UserError(f'{pixels.dtype} pixels cannot be resized; leave --rates away')
  way = cv2.INTER_AREA if rate < 1 else cv2.INTER_CUBIC
  shape = [max(1, round(side * rate)) for side in pixels.shape[1::-1]]
  bands = np.moveaxis(pixels, -1, 0)  # OpenCV takes no more than four at once
  return np.stack(
    [cv2.resize(np.ascontiguousarray(b), shape, interpolation=way) for b in bands], -1
  )
