"""`Detections` of Roboflow's supervision, which draws, counts and tracks them."""

import numpy as np

from data_pipelines import boxes as box_lib
from data_pipelines.errors import UserError


def detections(result):
  """`supervision.Detections`; `data` has `class_name`, and `xyxyxyxy` [n, 4, 2] of oriented boxes.

  Raises:
    UserError: supervision is missing.
  """
  try:
    import supervision
  except ModuleNotFoundError:
    raise UserError('to_supervision needs supervision: pip install supervision') from None
  data = {'class_name': np.array(result.names, str)}
  if result.oriented:
    data['xyxyxyxy'] = result.polygons.reshape(-1, 4, 2).astype(np.float32)
  return supervision.Detections(
    xyxy=box_lib.polygon_to_hbb(result.polygons),
    confidence=np.asarray(result.scores, np.float32),
    class_id=np.asarray(result.labels, int),
    data=data,
  )
