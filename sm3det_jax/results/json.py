"""JSON of this project: each detection with name, score, box, corners and place on the ground."""

import numpy as np

from sm3det_jax.results import columns


def content(result) -> dict:
  """`crs` and what `columns.ground` has stand there where the image has a georeference."""
  found = columns.ground(result)
  places = columns.rows({k: np.round(v, 9) for k, v in found.items()}) or [{}] * len(result)
  scores = [round(float(score), 4) for score in result.scores]
  boxes, quads = result.boxes.round(4).tolist(), result.polygons.round(2).tolist()
  rows = zip(result.names, scores, boxes, quads, places, strict=True)
  head = {'crs': result.georeference.crs.to_string()} if found else {}
  return {
    'image': result.name,
    'task': result.task,
    'height': result.size[0],
    'width': result.size[1],
    'box': 'obb: cx, cy, w, h, theta' if result.oriented else 'hbb: x1, y1, x2, y2',
    **head,
    'detections': [
      {'name': name, 'score': score, 'box': box, 'polygon': quad, **place}
      for name, score, box, quad, place in rows
    ],
  }
