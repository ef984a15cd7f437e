"""labelme json beside each image: rectangles of horizontal boxes, polygons of oriented ones."""

import json
import pathlib

from data_pipelines.writers import each, number


def write(folder, split, images, classes):
  """Writes `<split>/<id>.json`; the flag `difficult` of a shape is 1 or more in other formats."""
  each(folder / split, '.json', images, _text)


def _text(image):
  horizontal = image.boxes.shape[1] == 4
  shapes = []
  rows = image.boxes if horizontal else image.polygons
  for name, row, difficult in zip(image.names, rows, image.difficult, strict=True):
    values = [float(number(v)) for v in row]
    shapes.append(
      dict(
        label=name,
        points=[list(p) for p in zip(values[::2], values[1::2], strict=True)],
        group_id=None,
        shape_type='rectangle' if horizontal else 'polygon',
        flags={'difficult': True} if difficult else {},
      )
    )
  content = dict(
    version='5.5.0',
    flags={},
    shapes=shapes,
    imagePath=pathlib.PurePosixPath(image.file).name,
    imageData=None,
    imageHeight=image.height,
    imageWidth=image.width,
  )
  return json.dumps(content, indent=1) + '\n'
