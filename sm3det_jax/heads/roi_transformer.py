"""RoI Transformer, a two-stage oriented head (Ding et al. 2019)."""

import functools

from sm3det_jax.geometry import coders
from sm3det_jax.heads.two_stage import ENVELOPES, RoIHead, RoIHeads, Stage, TwoStage, normal


class RoITransformer(TwoStage):
  """The task's head: horizontal proposals; a stage that turns them; one that refines the result.

  The first stage has one box for all classes, the second one for each.

  Attributes:
    config: as `sm3det_jax.config.heads.roi_transformer`.
    num_classes: of its label space.
  """

  ROI_CODERS = (coders.DeltaXYWHToXYWHA(), coders.DeltaXYWHA((0.05, 0.05, 0.1, 0.1, 0.5)))
  REACHED = ENVELOPES

  def make_roi_head(self) -> RoIHeads:
    deltas = (5, 5 * self.num_classes)
    make = lambda k: RoIHead(self.num_classes, self.config.roi.fc_channels, deltas[k], normal)
    return RoIHeads(make, len(deltas))

  def stages(self) -> list[Stage]:
    roi, head = self.config.roi, self.roi_head
    return [
      Stage(functools.partial(head, k), coder, *of_stage)
      for k, (coder, *of_stage) in enumerate(
        zip(self.ROI_CODERS, roi.pos_iou, roi.sampling_ratio, roi.weight, strict=True)
      )
    ]
