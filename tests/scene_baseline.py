"""What no learning gets: threshold, connected components, rectangle around each, class by its form.

It is as good as it gets within these means: smoothing, threshold and polarity are those that score
best, and the classes' mean forms are measured on labelled scenes.
"""

import itertools

import cv2
import numpy as np

SETTINGS = list(itertools.product((0, 1.0, 2.0), ('otsu', 90, 95, 'local'), (False, True)))


def components(image, blur, threshold, dark):
  """Boxes [n, 5] (cx, cy, w, h, theta; w >= h), forms [n, 4] and contrasts [n] of blobs."""
  grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.ndim == 3 else image
  grey = 255 - grey if dark else grey
  grey = cv2.GaussianBlur(grey, (0, 0), blur) if blur else grey
  if threshold == 'local':
    mask = cv2.adaptiveThreshold(grey, 1, cv2.ADAPTIVE_THRESH_GAUSSIAN_C, 0, 101, -12)
  elif threshold == 'otsu':
    mask = cv2.threshold(grey, 0, 1, cv2.THRESH_OTSU)[1]
  else:
    mask = (grey > np.percentile(grey, threshold)).astype(np.uint8)
  boxes, forms, contrasts = [], [], []
  for contour in cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]:
    (x, y), (w, h), angle = cv2.minAreaRect(contour)
    (w, h), angle = ((w + 1, h + 1), angle) if w >= h else ((h + 1, w + 1), angle + 90)
    if h < 6 or w > 80:
      continue
    inside = np.zeros_like(mask)
    cv2.drawContours(inside, [contour], -1, 1, -1)
    area = inside.sum() / (w * h)
    boxes.append((x, y, w, h, np.deg2rad(angle)))
    forms.append((np.log(w), np.log(w / h), 3 * area, 2 * mask[inside > 0].mean()))
    contrasts.append(cv2.mean(grey, inside)[0] - grey.mean())
  return np.reshape(boxes, (-1, 5)), np.reshape(forms, (-1, 4)), np.array(contrasts)


def upright(boxes):
  """Boxes [n, 4] around oriented ones [n, 5]."""
  points = [cv2.boxPoints(((x, y), (w, h), np.rad2deg(a))) for x, y, w, h, a in boxes]
  points = np.reshape(points, (-1, 4, 2)) + 0.5
  return np.concatenate([points.min(1), points.max(1)], -1)


def detect(image, setting, means):
  """(boxes [n, 5], scores, labels): the class of the nearest mean form [classes, 4]."""
  boxes, forms, contrasts = components(image, *setting)
  distance = np.linalg.norm(forms[:, None] - means, axis=-1)
  return boxes, contrasts / 255 - distance.min(1, initial=9), distance.argmin(1)
