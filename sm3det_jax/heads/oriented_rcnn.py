"""Oriented R-CNN, the oriented head on optical and infrared images (Xie et al. 2021)."""

from sm3det_jax.geometry import coders
from sm3det_jax.heads.two_stage import ENVELOPES, RoIHead, Stage, TwoStage


class OrientedRCNN(TwoStage):
  """The task's head: oriented proposals by midpoint offsets, one stage on rotated RoIAlign.

  Attributes:
    config: as `sm3det_jax.config.heads.oriented_rcnn`.
    num_classes: of its label space.
  """

  RPN_CODER = coders.MidpointOffset()
  ROI_CODERS = (coders.DeltaXYWHA(),)
  REACHED = ENVELOPES

  def make_roi_head(self) -> RoIHead:
    return RoIHead(self.num_classes, self.config.roi.fc_channels)

  def stages(self) -> list[Stage]:
    roi = self.config.roi
    return [Stage(self.roi_head, *self.ROI_CODERS, roi.pos_iou, roi.sampling_ratio)]
