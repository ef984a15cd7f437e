"""Which objects a head's anchors reach."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sm3det_jax.config import heads as head_configs
from sm3det_jax.heads import head_class


def run(kind, head, boxes, valid):
  return jax.jit(functools.partial(head_class(kind).reached, head, (128, 128)))(boxes, valid)


def test_rpn_reaches_what_its_anchors_overlap_by_half():
  head = head_configs.oriented_rcnn()  # anchors of 32 px and up, every 4 px
  boxes = jnp.asarray(
    [
      [64, 64, 32, 32, 0.0],  # an anchor itself
      [64, 64, 45, 23, 0.0],  # nearly one of ratio 1:2
      [64, 64, 18, 11, 0.0],  # a person seen from a drone
      [64, 64, 60, 4, np.pi / 4],  # thin, but its envelope is large
      [64, 64, 32, 32, 0.0],  # padding
    ]
  )
  valid = jnp.asarray([True] * 4 + [False])
  reached = run('oriented_rcnn', head, boxes, valid)
  np.testing.assert_array_equal(reached, [True, True, False, True, False])
  head.anchor_scales = (4.0,)
  assert run('oriented_rcnn', head, boxes, valid)[2]


def test_gfl_reaches_what_atss_gives_an_anchor():
  head = head_configs.gfl()
  boxes = jnp.asarray([[20, 20, 60, 60.0], [41, 41, 46, 46], [20, 20, 60, 60]])
  reached = run('gfl', head, boxes, jnp.asarray([True, True, False]))
  # the second lies between the centres of all anchors, which are multiples of 8
  np.testing.assert_array_equal(reached, [True, False, False])


def test_retinanet_gives_every_object_its_best_anchor():
  head = head_configs.retinanet()
  boxes = jnp.asarray([[20, 20, 60, 60.0], [41, 41, 46, 46], [500, 500, 520, 520], [0, 0, 9, 9]])
  reached = run('retinanet', head, boxes, jnp.asarray([True, True, True, False]))
  # no anchor of the 128 px reaches the third; the fourth is padding
  np.testing.assert_array_equal(reached, [True, True, False, False])
