"""CSV: a row a detection, for spreadsheets and data frames; what is not known is empty."""

import csv
import io

import numpy as np

from data_pipelines.writers import number
from sm3det_jax.results import columns

CORNERS = ('x1', 'y1', 'x2', 'y2', 'x3', 'y3', 'x4', 'y4')  # pixels


def content(result) -> str:
  """The columns of `columns.table` between the image's name and the corners."""
  found = {'image': np.full(len(result), result.name, object)} | columns.table(result)
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator='\n')
  writer.writerow([*found, *CORNERS])
  for row, quad in zip(columns.rows(found), result.polygons, strict=True):
    writer.writerow([*row.values(), *map(number, quad)])
  return buffer.getvalue()
