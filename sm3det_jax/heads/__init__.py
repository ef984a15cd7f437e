"""Detection heads, by the name that a config gives them."""

from sm3det_jax.heads import gfl, oriented_rcnn, rpn

HEADS = {'gfl': gfl.GFL, 'oriented_rcnn': oriented_rcnn.OrientedRCNN}
# which objects a head can learn at all, given its anchors
REACHED = {'gfl': gfl.reached, 'oriented_rcnn': rpn.reached}
