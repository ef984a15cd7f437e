"""Pictures of boxes on images of any size, type and number of bands."""

import cv2
import numpy as np

from data_pipelines import boxes as box_lib
from data_pipelines.images import stretch
from data_pipelines.rasters import Raster

FONT = cv2.FONT_HERSHEY_SIMPLEX
SMALLEST = 640  # px, longest side of a picture; smaller images are enlarged by a whole factor
LARGEST = 4096  # px, of pictures of files; larger images are shown smaller
BACKGROUND, TEXT = (24, 24, 24), (240, 240, 240)
PALETTE = (
  (255, 90, 80), (80, 220, 100), (90, 160, 255), (255, 200, 40), (230, 110, 250), (60, 225, 225),
  (255, 145, 40), (170, 240, 60), (255, 130, 175), (150, 130, 255),
)  # fmt: skip
GREY = (170, 170, 170)  # of regions to ignore, which are dashed
SHADES = ((1.0, 0), (0.45, 140), (0.6, 0))


def color(label: int) -> tuple[int, int, int]:
  """RGB colour of a class, its own for thirty classes: ten colours, then lighter, then darker."""
  factor, offset = SHADES[label // len(PALETTE) % len(SHADES)]
  return tuple(int(factor * v + offset) for v in PALETTE[label % len(PALETTE)])


def to_rgb(image: np.ndarray) -> np.ndarray:
  """An image as one looks at it.

  8-bit values stay as they are; other types are stretched between their 0.5 and 99.5 percentiles,
  all bands alike, so that colours keep their balance. One band is grey; two are red and green with
  their mean as blue; of more than three the first three are shown.

  Args:
    image: [H, W] or [H, W, bands], any real type.

  Returns:
    uint8 [H, W, 3], a copy.
  """
  image = np.asarray(image)
  image = image.reshape(*image.shape[:2], -1)
  image = image if image.dtype == np.uint8 else stretch(image)
  if image.shape[2] == 2:
    return np.concatenate([image, image.mean(2, keepdims=True).astype(np.uint8)], 2)
  return image.repeat(3, 2) if image.shape[2] == 1 else image[..., :3].copy()


def overview(raster: Raster, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """A raster in at most `LARGEST` px a side, and boxes [n, 4 | 5] of its pixels there."""
  pixels, scale = raster.overview(LARGEST)
  boxes = np.array(boxes, np.float64)
  boxes[:, :4] *= scale
  return pixels, boxes


def draw(
  image: np.ndarray,
  boxes: np.ndarray,
  labels: np.ndarray,
  names: tuple[str, ...],
  scores: np.ndarray | None = None,
  title: str = '',
  ignored: np.ndarray | None = None,
) -> np.ndarray:
  """Boxes in their classes' colours, each with its name where it covers no object.

  Names stand beside the boxes; where there is no room (dense rows), the colour says the class, and
  the line below the picture says which colour is which and how many there are. Regions to ignore
  are dashed, grey and without a name, and counted apart.

  Args:
    image: as `to_rgb` takes it.
    boxes: [n, 4 | 5 | 8] in the image's pixels.
    labels: [n], indices of `names`.
    names: class names.
    scores: [n]; None for ground truth.
    title: of the line below.
    ignored: bool [n], which of them are regions to ignore; None: none.

  Returns:
    uint8 [H', W', 3]; enlarged if the image is small, and a line of text higher.
  """
  picture = to_rgb(image)
  zoom = max(1, -(-SMALLEST // max(picture.shape[:2])))
  if zoom > 1:
    picture = cv2.resize(picture, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
  quads = box_lib.to_polygon(np.asarray(boxes)).reshape(-1, 4, 2) * zoom  # [n, 4, 2]
  labels = np.asarray(labels, int)
  regions = np.zeros((0, 4, 2))
  if ignored is not None:
    regions, quads, labels = quads[ignored], quads[~ignored], labels[~ignored]
  texts = [names[k] for k in labels]
  if scores is not None:
    texts = [f'{t} {s:.2f}' for t, s in zip(texts, scores, strict=True)]
  _dashed(picture, regions)
  _outlines(picture, quads, labels)
  _texts(picture, quads, labels, texts)
  return np.concatenate([picture, _legend(picture, labels, names, title, len(regions))])


def compare(
  image: np.ndarray, truth: dict, found: dict, names: tuple[str, ...], name: str = ''
) -> np.ndarray:
  """Ground truth on the left, detections on the right.

  Args:
    image: as `to_rgb` takes it.
    truth: `boxes` (or `polygons`, which go first), `labels`, perhaps `ignored`.
    found: `boxes`, `labels`, `scores`.
    names: class names.
    name: of the image, for the line below.
  """
  title = f'{name}  ground truth'
  left = draw(image, _quads(truth), truth['labels'], names, None, title, truth.get('ignored'))
  right = draw(image, _quads(found), found['labels'], names, found['scores'], 'detections')
  return beside(left, right)


def beside(left: np.ndarray, right: np.ndarray) -> np.ndarray:
  """Two images in one picture, the shorter one padded below.

  Args:
    left: as `to_rgb` takes it.
    right: likewise.
  """
  left, right = to_rgb(left), to_rgb(right)
  height = max(len(left), len(right))  # legends may differ in lines
  panels = [np.pad(p, ((0, height - len(p)), (0, 0), (0, 0))) for p in (left, right)]
  gap = np.full((height, max(4, height // 100), 3), 255, np.uint8)
  return np.concatenate([panels[0], gap, panels[1]], 1)


def save(path, picture: np.ndarray) -> None:
  """Writes an RGB picture as PNG; makes its folder.

  Raises:
    OSError: the file cannot be written.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  done, data = cv2.imencode('.png', picture[..., ::-1])
  if not done:
    raise OSError(f'{path}: a picture of shape {picture.shape} does not encode as PNG')
  path.write_bytes(data.tobytes())


def _quads(entry):
  return entry['polygons'] if 'polygons' in entry else entry['boxes']


def _line_width(picture):
  return max(1, round(max(picture.shape[:2]) / 600))


def _font(picture):
  """(scale, line width) of text about 1/55 of the picture's longest side high."""
  scale = max(0.42, max(picture.shape[:2]) / 55 / 30)
  return scale, max(1, round(scale * 1.6))


def _outlines(picture, quads, labels):
  width = _line_width(picture)
  points = np.rint(quads * 16).astype(np.int32)  # sixteenths of a pixel
  # a dark rim keeps bright lines visible on snow
  cv2.polylines(picture, list(points), True, BACKGROUND, width + 2, cv2.LINE_AA, shift=4)
  for quad, label in zip(points, labels, strict=True):
    cv2.polylines(picture, [quad], True, color(label), width, cv2.LINE_AA, shift=4)


def _dashed(picture, quads):
  """Outlines of regions to ignore: every other stretch of twelve line widths."""
  width = _line_width(picture)
  for quad in quads:
    for start, end in zip(quad, np.roll(quad, -1, 0), strict=True):
      count = max(1, round(float(np.linalg.norm(end - start)) / (12 * width)))
      steps = start + (end - start) * np.linspace(0, 1, 2 * count + 1)[:, None]
      points = np.rint(steps * 16).astype(int).tolist()  # sixteenths of a pixel
      for rgb, extra in ((BACKGROUND, 2), (GREY, 0)):
        for a, b in zip(points[::2], points[1::2], strict=False):
          cv2.line(picture, a, b, rgb, width + extra, cv2.LINE_AA, shift=4)


def _texts(picture, quads, labels, texts):
  """Writes each text at the first place round its box that covers no object and no other text."""
  scale, width = _font(picture)
  sizes = {text: cv2.getTextSize(_drawn(text), FONT, scale, width) for text in set(texts)}
  below = {text: line for text, (_, line) in sizes.items()}
  size = [(w + 4, h + below[text] + 2) for text in texts for (w, h) in [sizes[text][0]]]
  size = np.array(size, int).reshape(-1, 2)
  places = _places(quads, size, _line_width(picture) + 2)
  taken = _covered(picture.shape[:2], quads.min(1), quads.max(1))
  free = _free(taken, places, size)
  for i in np.flatnonzero(free.any(1)):  # of a dense scene, few
    text, (w, h) = texts[i], size[i].tolist()
    for x, y in places[i, free[i]].tolist():
      if taken[y : y + h, x : x + w].any():  # by another text
        continue
      cv2.rectangle(picture, (x, y), (x + w, y + h), BACKGROUND, -1)
      origin = (x + 2, y + h - below[text])
      cv2.putText(picture, _drawn(text), origin, FONT, scale, color(labels[i]), width, cv2.LINE_AA)
      taken[y : y + h, x : x + w] = True
      break


def _places(quads, size, gap):
  """Upper left corners [n, 10, 2] of where texts of sizes [n, 2] may stand, the best first."""
  (x1, y1), (x2, y2), (w, h) = quads.min(1).T, quads.max(1).T, size.T
  above, under, left, right = y1 - h - gap, y2 + gap, x1 - w - gap, x2 + gap
  corner = lambda k: np.take_along_axis(quads[..., 0], k(quads[..., 1], 1)[:, None], 1)[:, 0]
  # over the highest corner, under the lowest, then beside the envelope
  top, bottom = (
    np.clip(corner(k) - w / 2, x1, np.maximum(x1, x2 - w)) for k in (np.argmin, np.argmax)
  )
  places = [(top, above), (bottom, under)]
  places += [(x1, above), (x1, under), (x2 - w, above), (x2 - w, under)]
  places += [(right, y1), (left, y1), (right, y2 - h), (left, y2 - h)]
  return np.rint(np.moveaxis(np.array(places), 2, 0)).astype(int)


def _free(taken, places, size):
  """bool [n, k]: which places [n, k, 2] lie in the picture, on no pixel of `taken` [H, W]."""
  limit = np.array(taken.shape[::-1])
  first, last = places, places + size[:, None]
  inside = ((first >= 0) & (last <= limit)).all(2)
  (x1, y1), (x2, y2) = (np.moveaxis(np.clip(a, 0, limit), 2, 0) for a in (first, last))
  total = cv2.integral(taken.astype(np.uint8))  # of all pixels above and to the left
  return inside & (total[y2, x2] - total[y1, x2] - total[y2, x1] + total[y1, x1] == 0)


def _drawn(text):
  """What of a text OpenCV can draw: names of files may be no Unicode, on which it crashes."""
  return text.encode('utf-8', 'backslashreplace').decode()


def _covered(shape, low, high):
  """bool [H, W]: the pixels that the envelopes from `low` to `high` [n, 2] (x, y) touch.

  One look at them says whether a place is free, however many objects there are.
  """
  covered = np.zeros(shape, bool)
  limit = np.array(shape[::-1])
  first = np.clip(np.floor(low), 0, limit).astype(int)
  last = np.clip(np.ceil(high), 0, limit).astype(int)
  for (x1, y1), (x2, y2) in zip(first.tolist(), last.tolist(), strict=True):
    covered[y1:y2, x1:x2] = True
  return covered


def _legend(picture, labels, names, title, regions):
  """Lines below the picture: its title, then each class there is, in its colour, with its count."""
  scale, width = _font(picture)
  (_, h), below = cv2.getTextSize('Ag', FONT, scale, width)
  counts = np.bincount(labels, minlength=len(names))
  present = np.flatnonzero(counts)
  items = [(f'{title} ({len(labels)})', TEXT)]
  items += [(f'{names[k]} {counts[k]}', color(k)) for k in present]
  items += [(f'dashed: to ignore {regions}', GREY)] if regions else []
  step, space, x, lines = h + below + 6, 2 * h, 6, [[]]
  for text, rgb in items:
    (w, _), _ = cv2.getTextSize(_drawn(text), FONT, scale, width)
    if x + w > picture.shape[1] and lines[-1]:
      x, lines = 6, [*lines, []]
    lines[-1].append((x, text, rgb))
    x += w + space
  strip = np.full((step * len(lines) + 4, picture.shape[1], 3), BACKGROUND, np.uint8)
  for row, line in enumerate(lines):
    for x, text, rgb in line:
      origin = (x, row * step + h + 5)
      cv2.putText(strip, _drawn(text), origin, FONT, scale, rgb, width, cv2.LINE_AA)
  return strip
