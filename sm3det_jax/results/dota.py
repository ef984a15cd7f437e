"""DOTA's label text: `x1 y1 x2 y2 x3 y3 x4 y4 class difficult` a line, no scores.

White space in a class becomes `-`, as in DOTA's own names.
"""

from data_pipelines.writers import number


def content(result) -> str:
  """A line a detection, none of which is difficult."""
  rows = zip(result.polygons, result.names, strict=True)
  return ''.join(
    f'{" ".join(map(number, quad))} {"-".join(name.split())} 0\n' for quad, name in rows
  )
