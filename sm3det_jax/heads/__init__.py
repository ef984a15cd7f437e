"""Detection heads, by the name that a config gives them."""

from sm3det_jax.heads import (
  cascade_rcnn,
  faster_rcnn,
  gfl,
  oriented_rcnn,
  retinanet,
  roi_transformer,
  rpn,
  s2anet,
)

HEADS = {
  'gfl': gfl.GFL,
  'retinanet': retinanet.RetinaNet,
  'faster_rcnn': faster_rcnn.FasterRCNN,
  'cascade_rcnn': cascade_rcnn.CascadeRCNN,
  'oriented_rcnn': oriented_rcnn.OrientedRCNN,
  'roi_transformer': roi_transformer.RoITransformer,
  's2anet': s2anet.S2ANet,
}
# which objects a head can learn at all, given its anchors
REACHED = {
  'gfl': gfl.reached,
  'retinanet': retinanet.reached,
  'faster_rcnn': rpn.reached,
  'cascade_rcnn': rpn.reached,
  'oriented_rcnn': rpn.reached,
  'roi_transformer': rpn.reached,
  's2anet': s2anet.reached,
}
