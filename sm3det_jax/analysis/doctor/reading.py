"""Raw and prepared data sets -> what the doctor keeps of them."""

import concurrent.futures
import dataclasses
import json
import logging
import os
from collections.abc import Iterable, Iterator

import numpy as np

from data_pipelines import boxes as box_lib
from data_pipelines import images, source
from data_pipelines import objects as objects_lib
from data_pipelines.builders import decisions, scan
from data_pipelines.builders.decisions import Decisions
from data_pipelines.errors import UserError
from data_pipelines.raw import Collected
from data_pipelines.readers import Annotation
from sm3det_jax.analysis.doctor import pixels as pixels_lib
from sm3det_jax.analysis.doctor.dataset import TESTED, UNKNOWN, Dataset, Image

MISFIT = 'its labels are of an image of another size, or of the view that EXIF turns'

logger = logging.getLogger(__name__)


def of_sources(collected: Collected, how: Decisions = decisions.AUTO) -> Dataset:
  """A raw data set, as `data_pipelines.raw.collect` has read its labels.

  Args:
    collected: its labels; its `skipped` goes on counting.
    how: what the user says of the whole data set.
  """
  splits = _tested_first(collected.annotations)
  annotations = [(s, a) for s in splits for a in collected.annotations[s]]
  labels, skipped = _Labels(collected.label), collected.skipped

  def load(k):
    a = annotations[k][1]
    loaded = images.load(a.image)
    x1, y1, x2, y2 = a.crop or (0, 0, loaded.header.width, loaded.header.height)
    return loaded.pixels[y1:y2, x1:x2], (loaded.header, loaded.remarks)

  found, rows, unknown, total = [], [], {}, 0
  looks = _looks(load, len(annotations))
  for k, ((split, a), (look, problem, file)) in enumerate(zip(annotations, looks, strict=True)):
    if look:
      header, remarks = file
      for remark, count in remarks.items():
        skipped.add(remark, a.image, count)
      # values without data have become the mean
      missing = remarks.get(images.NO_DATA, 0) / (header.height * header.width * header.bands)
      look = look._replace(filled=max(look.filled - missing, 0.0))
      size = header.height, header.width
      seen = decisions.in_stored_view(a, size, header.orientation, how, skipped)
      a, problem = seen or a, '' if seen else MISFIT
    else:
      reason, *detail = problem.split(' (', 1)
      skipped.add(f'image {reason}', ' ('.join([str(a.image), *detail]))
    found.append(Image(split, a.id, str(a.image), look, problem))
    if collected.box != 'image':
      kept, names = _objects(a, k, collected.box, labels)
      unknown |= {total + i: name for i, name in names.items()}
      rows.append(kept)
      total += len(kept['label'])
      if look and not problem:
        _left_out(a, look, collected, labels)
  name, box, classes = collected[:3]
  return Dataset(name, box, classes, found, _joined(rows), unknown, skipped, lambda k: load(k)[0])


def of_prepared(data_root, name: str, splits: Iterable[str] = ()) -> Dataset:
  """A prepared data set below `data_root`, of all its splits or of those that are named.

  Raises:
    FileNotFoundError: no such data set.
    UserError: no such split.
  """
  metadata = json.loads((source.dataset_folder(data_root, name) / 'metadata.json').read_text())
  names = _tested_first(splits or metadata['fingerprints'])
  opened = {s: source.Source(data_root, name, s) for s in names}
  places = [(s, i) for s, split in opened.items() for i in range(len(split))]

  def load(k):
    split, i = places[k]
    return opened[split][i]['image'], None

  truths = [t for split in opened.values() for t in split.truth()]
  looks = _looks(load, len(places))
  found, rows, box = [], [], metadata['box']
  for k, ((split, i), truth, seen) in enumerate(zip(places, truths, looks, strict=True)):
    found.append(Image(split, truth['id'], f'{split}, record {i}', *seen[:2]))
    if box != 'image':
      row = np.flatnonzero(objects_lib.valid({'boxes': truth['boxes']} | truth))
      own = {key: truth[key][row] for key in ('boxes', 'polygons', 'difficult')}
      rows.append(own | dict(image=np.full_like(row, k), row=row, label=truth['labels'][row]))
  classes = tuple(metadata['classes'])
  return Dataset(name, box, classes, found, _joined(rows), {}, None, lambda k: load(k)[0])


def _tested_first(splits):
  """Test, validation, whatever else, training."""
  return sorted(splits, key=lambda s: (*(s != t for t in TESTED), s == 'train'))


class _Labels:
  """Class name -> label, None for an ignored one, `UNKNOWN` for one that nobody knows."""

  def __init__(self, label):
    self._label, self._known = label, {}

  def __call__(self, name, file):
    if name not in self._known:
      try:
        self._known[name] = self._label(name, file)
      except UserError:
        self._known[name] = UNKNOWN
    return self._known[name]


def _looks(load, count) -> Iterator[tuple]:
  """Yields (look or None, why there is none, what else `load` gives beside the pixels)."""

  def seen(k):
    try:
      pixels, *more = load(k)
      return pixels_lib.look(pixels), '', *more
    except OSError as error:
      return None, f'unreadable ({error.strerror})', None
    except images.ImageError as error:
      return None, str(error).partition(': ')[2], None

  with concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
    for k, found in enumerate(pool.map(seen, range(count))):
      if k and not k % 5000:
        logger.info('%d images looked at', k)
      yield found


def _objects(a: Annotation, number: int, box: str, label):
  """(rows of an annotation's objects, {row among them: name of an unknown class})."""
  where = a.labels or a.image
  labels = [label(name, where) for name in a.names]
  keep = np.array([k is not None for k in labels], bool)
  keep &= ~np.asarray(a.extra.get('ignored', np.zeros(len(keep))), bool)
  boxes, polygons = np.float32(a.boxes), np.float32(a.polygons).reshape(-1, 8)
  if len(boxes) and boxes.shape[1] < box_lib.COLUMNS[box]:
    raise UserError(f'{where}: horizontal boxes, but the data set is to hold oriented ones')
  if box == 'hbb' and boxes.shape[-1] == 5:
    boxes = box_lib.polygon_to_hbb(polygons)
  boxes = boxes.reshape(-1, box_lib.COLUMNS[box])
  rows = np.flatnonzero(keep)
  kept = dict(
    image=np.full(len(rows), number),
    row=rows,
    label=np.array([labels[k] for k in rows], int),
    boxes=boxes[keep],
    polygons=polygons[keep],
    difficult=np.asarray(a.difficult)[keep] > 0,
  )
  return kept, {i: a.names[k] for i, k in enumerate(rows) if labels[k] == UNKNOWN}


def _left_out(a, look, collected, label):
  """Counts in `collected.skipped` what `prepare` would leave out of an annotation or mend."""
  keep = [k for k, name in enumerate(a.names) if label(name, a.image) != UNKNOWN]
  if len(keep) < len(a.names):
    a = dataclasses.replace(
      a,
      names=tuple(a.names[k] for k in keep),
      **{k: np.asarray(getattr(a, k))[keep] for k in ('boxes', 'polygons', 'difficult')},
      extra={k: np.asarray(v)[keep] for k, v in a.extra.items()},
    )
  scan.clean(a, look.height, look.width, collected.box, collected.label, collected.skipped)


def _joined(rows):
  if not rows:
    return {}
  return {name: np.concatenate([r[name] for r in rows]) for name in rows[0]}
