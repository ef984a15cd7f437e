"""Detection heads, by the name that a config gives them."""

from sm3det_jax.heads import gfl, oriented_rcnn, roi_transformer, rpn, s2anet

HEADS = {
  'gfl': gfl.GFL,
  'oriented_rcnn': oriented_rcnn.OrientedRCNN,
  'roi_transformer': roi_transformer.RoITransformer,
  's2anet': s2anet.S2ANet,
}
# which objects a head can learn at all, given its anchors
REACHED = {
  'gfl': gfl.reached,
  'oriented_rcnn': rpn.reached,
  'roi_transformer': rpn.reached,
  's2anet': s2anet.reached,
}
