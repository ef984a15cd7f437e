"""YOLO text: a class number and shares of the image's width and height a line, names in a yaml.

Detection has cx cy w h, `oriented` (YOLO-OBB) x1 y1 .. x4 y4. Shares have twelve digits and may
leave 0..1, as boxes may leave the image.
"""

import json

import numpy as np

from data_pipelines.writers import each


def write(folder, split, images, classes, oriented=False):
  """Writes `labels/<split>/<id>.txt` and the split's line in `data.yaml`."""
  index = {name: k for k, name in enumerate(classes)}

  def text(image):
    if oriented:
      rows = image.polygons.astype(np.float64) / np.tile([image.width, image.height], 4)
    else:
      x1, y1, x2, y2 = image.boxes.astype(np.float64).T
      rows = np.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], -1)
      rows /= np.tile([image.width, image.height], 2)
    lines = zip(image.names, rows, strict=True)
    return ''.join(f'{index[n]} {" ".join(f"{v:.12g}" for v in row)}\n' for n, row in lines)

  each(folder / 'labels' / split, '.txt', images, text)
  yaml = folder / 'data.yaml'
  new = not yaml.exists()
  with open(yaml, 'a', encoding='utf-8') as f:
    if new:  # a string of JSON is one of YAML
      names = (json.dumps(n, ensure_ascii=False) for n in classes)
      f.write('names:\n' + ''.join(f'  {k}: {n}\n' for k, n in enumerate(names)))
    f.write(f'{split}: images/{split}\n')
