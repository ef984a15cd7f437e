"""YOLO-OBB's label text: `class x1 y1 .. x4 y4` a line, shares of width and height, no scores.

The class is its number among the task's, which a `data.yaml` of a data set names.
"""

import numpy as np


def content(result) -> str:
  """A line a detection; shares leave 0..1 where a box leaves the image."""
  shares = result.polygons / np.tile(result.size[::-1], 4)
  rows = zip(result.labels, shares, strict=True)
  return ''.join(f'{label} {" ".join(f"{v:.12g}" for v in row)}\n' for label, row in rows)
