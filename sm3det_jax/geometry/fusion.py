"""Weighted box fusion with static shapes, for horizontal and oriented boxes.

R. Solovyev, W. Wang, T. Gabruseva: Weighted boxes fusion: Ensembling boxes from different object
detection models. Image and Vision Computing 107, 2021, section 3. That oriented boxes are averaged
with their edges matched and their angles doubled is this project's.
"""

import math

import jax
import jax.numpy as jnp

from sm3det_jax.geometry import iou, obb


def weighted_box_fusion(
  boxes: jax.Array,
  scores: jax.Array,
  iou_threshold: float,
  max_outputs: int,
  views: int,
  labels: jax.Array,
  valid: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Averages of the boxes that several views of one image agree on.

  In the order of the scores each box joins the cluster of its label whose average it overlaps most,
  if that is by more than `iou_threshold`, or starts one. A cluster's average is weighted by scores.
  An oriented box is first seen with that of its edges as w which is nearest to the w of the
  cluster's best box, so that a nearly square one may come with either; then centres and sides are
  averaged, and angles as unit vectors of twice the angle, which know no jump at pi. A cluster's
  score is the mean of its boxes', times min(boxes, views) / views: what few views saw counts less.

  Works under jit and vmap; one loop over the boxes, each compared with all clusters.

  Args:
    boxes: HBB [n, 4] or OBB [n, 5], of all views, in the pixels of one image.
    scores: [n]; equal ones keep the order of their indices, those not above 0 take no part.
    iou_threshold: of a box and a cluster's average; 0.55 in the paper.
    max_outputs: static number of clusters, n or less; once there are as many, a box that fits to
      none of them is left out.
    views: how many saw the image.
    labels: int [n]; only boxes of equal labels are one cluster.
    valid: bool [n]; the others take no part.

  Returns:
    (boxes [max_outputs, 4 | 5], oriented ones in le90, scores, labels, valid, each [max_outputs]),
    best first; 0 where not valid.
  """
  n, width = boxes.shape
  usable = valid & (scores > 0)
  order = jnp.argsort(jnp.where(usable, -scores, jnp.inf), stable=True)
  boxes, scores, labels = boxes[order], scores[order], labels[order]
  total = usable.sum()
  overlap = iou.hbb_iou_aligned if width == 4 else iou.rotated_iou_aligned
  slots = jnp.arange(max_outputs)

  def step(state):
    i, count, leader, members, weight, sums, fused = state
    same = (slots < count) & (labels[leader] == labels[i])
    shared = jnp.where(same, overlap(fused, boxes[i][None]), 0)
    nearest = shared.argmax()
    joins = shared[nearest] > iou_threshold
    slot = jnp.where(joins, nearest, count)  # count == max_outputs: nothing is written
    leader = leader.at[slot].set(jnp.where(joins, leader[slot], i), mode='drop')
    members = members.at[slot].add(1, mode='drop')
    weight = weight.at[slot].add(scores[i], mode='drop')
    sums = sums.at[slot].add(scores[i] * _encoded(boxes[i], boxes[leader[slot]]), mode='drop')
    fused = fused.at[slot].set(_decoded(sums[slot] / weight[slot]), mode='drop')
    count = jnp.minimum(jnp.maximum(count, slot + 1), max_outputs)
    return i + 1, count, leader, members, weight, sums, fused

  integers = jnp.zeros(max_outputs, order.dtype)
  weight = jnp.zeros(max_outputs, scores.dtype)
  sums = jnp.zeros((max_outputs, width + (width == 5)), boxes.dtype)
  state = 0, 0, integers, integers, weight, sums, jnp.zeros((max_outputs, width), boxes.dtype)
  state = jax.lax.while_loop(lambda s: s[0] < total, step, state)
  _, count, leader, members, weight, _, fused = state
  seen = jnp.minimum(members, views).astype(scores.dtype) / views
  score = weight / jnp.maximum(members, 1).astype(scores.dtype) * seen
  best = jnp.argsort(-score, stable=True)  # those that are no clusters have 0
  found = best < count
  fused = fused[best] if width == 4 else obb.normalise(fused[best])
  return fused, score[best], jnp.where(found, labels[leader[best]], 0), found


def _encoded(box, leader):
  """What is averaged of a box [4 | 5]; an oriented one with its edges as those of `leader`."""
  if len(box) == 4:
    return box
  x, y, w, h, theta = box
  crossed = jnp.abs(obb.wrap_angle(theta - leader[4])) > math.pi / 4
  w, h = jnp.where(crossed, h, w), jnp.where(crossed, w, h)
  double = 2 * theta + jnp.where(crossed, math.pi, 0)
  return jnp.stack([x, y, w, h, jnp.cos(double), jnp.sin(double)])


def _decoded(mean):
  """The box [4 | 5] of a mean of `_encoded` ones."""
  if len(mean) == 4:
    return mean
  return jnp.append(mean[:4], jnp.arctan2(mean[5], mean[4]) / 2)
