"""Conventions for the angle of an oriented box: which of its equal spellings a file has.

| name | angle, positive clockwise on the screen | sides |
|---|---|---|
| le90 | [-pi/2, pi/2) | w >= h |
| le135 | [-pi/4, 3 pi/4) | w >= h |
| oc | (0, pi/2], as OpenCV since 4.5.1 | in any order |

Each function takes OBB [n, 5] cx, cy, w, h, theta of any convention (radians, pixels), so the way
from one to another is the other's function alone, and returns float32 [n, 5].
"""

import math

import numpy as np

from data_pipelines import boxes as box_lib

le90 = box_lib.le90


def le135(obb: np.ndarray) -> np.ndarray:
  """The same rectangles with w >= h and theta in [-pi/4, 3 pi/4)."""
  out = le90(obb)
  theta = np.where(out[:, 4] < -math.pi / 4, out[:, 4].astype(np.float64) + math.pi, out[:, 4])
  # rounding to float32 may land on the upper end, which is the lower one
  end = np.float32(3 * math.pi / 4)
  out[:, 4] = np.where(theta.astype(np.float32) >= end, np.float32(-math.pi / 4), theta)
  return out


def oc(obb: np.ndarray) -> np.ndarray:
  """The same rectangles with theta in (0, pi/2], the sides in the order that this needs."""
  cx, cy, w, h, theta = np.asarray(obb, np.float64).reshape(-1, 5).T
  theta = theta.astype(np.float32).astype(np.float64)  # so that rounding cannot make it 0 below
  turns = np.ceil(theta / (math.pi / 2)) - 1
  odd = turns % 2 == 1
  sides = np.where(odd, h, w), np.where(odd, w, h)
  return np.stack([cx, cy, *sides, theta - turns * math.pi / 2], -1).astype(np.float32)


CONVENTIONS = {'le90': le90, 'le135': le135, 'oc': oc}
ENDS = {
  'le90': (-math.pi / 2, math.pi / 2),
  'le135': (-math.pi / 4, 3 * math.pi / 4),
  'oc': (0.0, math.pi / 2),
}


def spelled(obb: np.ndarray, convention: str) -> np.ndarray:
  """The rectangles as a file of this convention has them; float64 [n, 5].

  The float32 next to an end may lie beyond it, where a reader takes it for the other end: such an
  angle is the end itself.
  """
  out = CONVENTIONS[convention](obb).astype(np.float64)
  out[:, 4] = np.clip(out[:, 4], *ENDS[convention])
  return out
