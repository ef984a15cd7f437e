"""Detection heads, by the name that a config gives them."""

from sm3det_jax.heads.gfl import GFL
from sm3det_jax.heads.oriented_rcnn import OrientedRCNN

HEADS = {'gfl': GFL, 'oriented_rcnn': OrientedRCNN}
