"""What a sample has per object: one dict {name: [n, ...]}, cut, filtered and moved as a whole.

Of a data set of boxes: `boxes` float32 [n, 4 | 5], `labels` int32 [n], `difficult` bool [n],
`polygons` float32 [n, 8], and whatever else it has per object, such as embeddings [n, E], which
travels along as it is. `ignored` bool [n] are regions of which nothing is known: nothing is to be
learned there, and nothing found there counts. Without boxes: {}.
"""

import numpy as np

OWN = ('boxes', 'polygons', 'labels', 'difficult')  # of every data set of boxes


def count(objects: dict) -> int:
  """How many they are."""
  return len(next(iter(objects.values()), ()))


def valid(objects: dict) -> np.ndarray:
  """Which of them, bool [n], are objects and no regions to ignore."""
  return ~objects['ignored'] if 'ignored' in objects else np.ones(count(objects), bool)


def take(objects: dict, rows) -> dict:
  """Those that `rows` names: an index [k], a mask [n] or a slice."""
  return {name: values[rows] for name, values in objects.items()}


def moved(objects: dict, x: float, y: float) -> dict:
  """The same ones with `boxes` and `polygons` moved by x, y pixels."""
  if not objects:
    return objects
  xy = np.array([x, y], np.float32)
  corners = 2 if objects['boxes'].shape[1] == 4 else 1
  boxes = objects['boxes'].copy()
  boxes[:, : 2 * corners] += np.tile(xy, corners)
  return objects | {'boxes': boxes, 'polygons': objects['polygons'] + np.tile(xy, 4)}
