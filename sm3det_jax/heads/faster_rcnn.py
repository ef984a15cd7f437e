"""Faster R-CNN, a two-stage horizontal head (Ren et al. 2015; the FPN form of Lin et al. 2017)."""

import flax.linen as nn

from sm3det_jax.geometry import coders
from sm3det_jax.heads.two_stage import RoIHead, Stage, TwoStage


def hbb_roi_head(num_classes: int, fc_channels: int, deltas: int) -> RoIHead:
  """A RoI head as mmdet starts it."""
  init = nn.initializers.normal
  return RoIHead(num_classes, fc_channels, deltas, cls_init=init(0.01), reg_init=init(0.001))


class FasterRCNN(TwoStage):
  """The task's head: horizontal proposals, one stage with a box for every class.

  Attributes:
    config: as `sm3det_jax.config.heads.faster_rcnn`.
    num_classes: of its label space.
  """

  ROI_CODERS = (coders.DeltaXYWH((0.1, 0.1, 0.2, 0.2)),)
  DROP_EMPTY = True

  def make_roi_head(self) -> RoIHead:
    return hbb_roi_head(self.num_classes, self.config.roi.fc_channels, 4 * self.num_classes)

  def stages(self) -> list[Stage]:
    roi = self.config.roi
    return [Stage(self.roi_head, *self.ROI_CODERS, roi.pos_iou, roi.sampling_ratio)]
