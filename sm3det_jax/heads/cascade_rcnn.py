"""Cascade R-CNN, a horizontal head of three stages (Cai and Vasconcelos 2018)."""

import functools

from sm3det_jax.geometry import coders
from sm3det_jax.heads.faster_rcnn import hbb_roi_head
from sm3det_jax.heads.two_stage import RoIHeads, Stage, TwoStage


class CascadeRCNN(TwoStage):
  """The task's head: horizontal proposals, three stages that ask for more overlap each.

  Every stage has one box for all classes.

  Attributes:
    config: as `sm3det_jax.config.heads.cascade_rcnn`.
    num_classes: of its label space.
  """

  ROI_CODERS = tuple(
    coders.DeltaXYWH((center, center, size, size))
    for center, size in ((0.1, 0.2), (0.05, 0.1), (0.033, 0.067))
  )
  DROP_EMPTY = True

  def make_roi_head(self) -> RoIHeads:
    make = lambda k: hbb_roi_head(self.num_classes, self.config.roi.fc_channels, 4)
    return RoIHeads(make, len(self.ROI_CODERS))

  def stages(self) -> list[Stage]:
    roi = self.config.roi
    return [
      Stage(functools.partial(self.roi_head, k), coder, iou, roi.sampling_ratio, weight)
      for k, (coder, iou, weight) in enumerate(
        zip(self.ROI_CODERS, roi.pos_iou, roi.weight, strict=True)
      )
    ]
