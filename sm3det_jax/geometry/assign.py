"""Which ground truth each box answers for, and which boxes a loss is computed on. Static shapes.

An assignment `gt_inds` is int32 [n]: -1 ignored, 0 background, i + 1 ground truth i.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from data_pipelines.errors import UserError
from sm3det_jax.geometry import hbb, obb
from sm3det_jax.geometry import iou as iou_lib
from sm3det_jax.precision import wide

OBJECTS = 32  # ground truths that boxes are compared with at a time
IGNORED_IOF = 0.5  # share of a box, from which on it lies in an ignored region (`ignore_iof_thr`)


def max_iou(
  iou: Callable[[jax.Array, jax.Array], jax.Array],
  boxes: jax.Array,
  gts: jax.Array,
  gt_valid: jax.Array,
  pos_iou: float,
  neg_iou: float,
  min_pos_iou: float = 0.0,
  low_quality: bool = True,
  box_valid: jax.Array | None = None,
) -> jax.Array:
  """Assigns each box to the ground truth it overlaps most (Faster R-CNN, as mmdet 2.x).

  Time and memory grow with the ground truths up to the last valid one, not with their padding. For
  one image: mapped over images, use `heads.common.map_images`, as the number of steps differs.

  Args:
    iou: of boxes [n, d] with ground truths [k, d'], every one with every one: [n, k].
    boxes: [n, d].
    gts: [m, d'].
    gt_valid: bool [m]; padding is never matched.
    pos_iou: a box is positive from this IoU on.
    neg_iou: a box is background below it; in between it is ignored.
    min_pos_iou: lowest IoU for a low-quality match.
    low_quality: every box whose IoU equals a ground truth's best (above 0) goes to that ground
      truth, the last one winning, whatever else it overlaps.
    box_valid: bool [n]; the others are ignored, and do not count for a ground truth's best.

  Returns:
    gt_inds int32 [n].
  """
  n, m = len(boxes), len(gts)
  box_valid = jnp.ones(n, bool) if box_valid is None else box_valid
  if m == 0:
    return jnp.where(box_valid, 0, -1).astype(jnp.int32)
  size = min(m, OBJECTS)
  gts = jnp.pad(gts, ((0, -m % size), (0, 0)))
  gt_valid = jnp.pad(gt_valid, (0, -m % size))
  counted = jnp.arange(1, len(gts) + 1, dtype=jnp.int32)

  def compare(step, carry):
    best, first, last = carry  # highest IoU; which gt, counted from 1, has it; which claims the box
    start = step * size
    part, valid = (lax.dynamic_slice_in_dim(x, start, size) for x in (gts, gt_valid))
    overlaps = jnp.where(valid[None], iou(boxes, part), -1)
    highest = overlaps.max(1)
    first = jnp.where(highest > best, start + 1 + lax.argmax(overlaps, 1, jnp.int32), first)
    if low_quality:
      gt_best = jnp.where(box_valid[:, None], overlaps, -1).max(0, keepdims=True)
      match = (overlaps == gt_best) & (gt_best >= min_pos_iou) & (gt_best > 0)
      claims = jnp.where(match, counted[None, :size], 0).max(1)
      last = jnp.where(claims > 0, start + claims, last)
    return jnp.maximum(best, highest), first, last

  used = jnp.where(gt_valid, counted, 0).max()
  dtype = jax.eval_shape(iou, boxes, gts[:size]).dtype
  none = jnp.zeros(n, jnp.int32)
  best, first, last = lax.fori_loop(
    0, (used + size - 1) // size, compare, (jnp.full(n, -1, dtype), none, none)
  )
  gt_inds = jnp.where(best < neg_iou, 0, -1)
  gt_inds = jnp.where(best >= pos_iou, first, gt_inds)
  gt_inds = jnp.where(last > 0, last, gt_inds)
  return jnp.where(box_valid, gt_inds, -1).astype(jnp.int32)


def atss(
  anchors: jax.Array, level_sizes: Sequence[int], gts: jax.Array, gt_valid: jax.Array, topk: int = 9
) -> jax.Array:
  """Adaptive training sample selection (ATSS, algorithm 1; as mmdet 2.x).

  The candidates of a ground truth are the topk anchors of each level nearest to its centre; those
  whose IoU is at least the candidates' mean plus (unbiased) standard deviation, and whose centre is
  more than 0.01 px inside it, are positive. An anchor wanted by several goes to the highest IoU.

  Args:
    anchors: HBB [n, 4], levels one after another.
    level_sizes: number of anchors of each level, summing to n.
    gts: HBB [m, 4].
    gt_valid: bool [m].
    topk: candidates a level.

  Returns:
    gt_inds int32 [n]; nothing is ignored.
  """
  n, m = anchors.shape[0], gts.shape[0]
  if m == 0:
    return jnp.zeros(n, jnp.int32)
  iou = iou_lib.hbb_iou(gts, anchors)  # [m, n]
  points, centers = hbb.centers(anchors), hbb.centers(gts)
  distance = jnp.sqrt(jnp.square(points[None] - centers[:, None]).sum(-1))
  candidates, start = [], 0
  for size in level_sizes:
    nearest = lax.top_k(-distance[:, start : start + size], min(topk, size))[1]
    candidates.append(nearest + start)
    start += size
  candidates = jnp.concatenate(candidates, 1)  # [m, k]
  overlaps = jnp.take_along_axis(iou, candidates, 1)
  mean = overlaps.mean(1, keepdims=True)
  spread = jnp.square(overlaps - mean).sum(1, keepdims=True) / max(overlaps.shape[1] - 1, 1)
  threshold = mean + jnp.sqrt(spread)
  margins = jnp.concatenate(
    [points[candidates] - gts[:, None, :2], gts[:, None, 2:] - points[candidates]], -1
  )
  positive = (overlaps >= threshold) & (margins.min(-1) > 0.01) & gt_valid[:, None]
  rows = jnp.arange(m)[:, None]
  wanted = jnp.full((m, n), -jnp.inf, iou.dtype)
  wanted = wanted.at[rows, candidates].set(jnp.where(positive, overlaps, -jnp.inf))
  best = wanted.argmax(0)
  return jnp.where(wanted.max(0) > -jnp.inf, best + 1, 0).astype(jnp.int32)


def ignore_regions(
  gt_inds: jax.Array, boxes: jax.Array, regions: jax.Array, ignored: jax.Array | None
) -> jax.Array:
  """Takes the boxes that lie in an ignored region out of the background: they are ignored too.

  Positives stay. Time and memory, and what may be mapped over images, are as for `max_iou`.

  Args:
    gt_inds: int32 [n], an assignment.
    boxes: HBB [n, 4] or OBB [n, 5].
    regions: [m, 4 | 5], of the same format.
    ignored: bool [m], which of them are ignored regions; None = there are none.

  Returns:
    gt_inds int32 [n].
  """
  if ignored is None or not len(ignored):
    return gt_inds
  horizontal, size = boxes.shape[-1] == 4, min(len(regions), OBJECTS)
  common = iou_lib.hbb_intersection if horizontal else iou_lib.rotated_intersection
  area = wide((hbb if horizontal else obb).area(boxes))[:, None]

  def compare(step, inside):
    # the last step looks back, into rows that the one before it had, which changes nothing
    part, there = (lax.dynamic_slice_in_dim(x, step * size, size) for x in (regions, ignored))
    deep = common(boxes[:, None], part[None]) >= IGNORED_IOF * area  # no quotient: halves are exact
    return inside | (deep & there[None]).any(1)

  used = jnp.where(ignored, jnp.arange(1, len(ignored) + 1), 0).max()
  inside = lax.fori_loop(
    jnp.argmax(ignored) // size, (used + size - 1) // size, compare, jnp.zeros(len(boxes), bool)
  )
  return jnp.where(inside & (area[:, 0] > 0) & (gt_inds == 0), -1, gt_inds)


def matched(gt_inds: jax.Array, gt_valid: jax.Array) -> jax.Array:
  """Which ground truths, bool [m], have at least one box in an assignment [n]."""
  numbers = jnp.arange(1, len(gt_valid) + 1)[:, None]
  return (gt_inds[None] == numbers).any(1) & gt_valid


def sample(
  gt_inds: jax.Array,
  num: int,
  positive_fraction: float,
  mode: str = 'random',
  rng: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Chooses the boxes a loss is computed on.

  At most `num * positive_fraction` positives; negatives fill up to `num`, also in place of missing
  positives.

  Args:
    gt_inds: int32 [n], an assignment.
    num: number of boxes.
    positive_fraction: largest share of positives.
    mode: 'random', 'firstk' (ascending indices) or 'all' (every positive and negative).
    rng: key for 'random'.

  Returns:
    (positive, negative) bool masks [n].

  Raises:
    UserError: for an unknown mode, or 'random' without rng.
  """
  positive, negative = gt_inds > 0, gt_inds == 0
  if mode == 'all':
    return positive, negative
  if mode == 'firstk':
    choose = _first
  elif mode == 'random':
    if rng is None:
      raise UserError("sampling 'random' needs an rng key, got None; pass one or use 'firstk'")
    key = jax.random.uniform(rng, gt_inds.shape)
    choose = lambda mask, limit, size: _lowest(key, mask, limit, size)
  else:
    raise UserError(f"sampling mode is {mode!r}, must be 'random', 'all' or 'firstk'")
  most = int(num * positive_fraction)
  positive = choose(positive, most, most)
  return positive, choose(negative, num - positive.sum(), num)


def _first(mask, limit, size):
  del size
  return mask & (jnp.cumsum(mask) <= limit)


def _lowest(key, mask, limit, size):
  """The `limit` (at most `size`, static) elements of mask with the lowest keys."""
  size = min(size, mask.shape[0])
  values, indices = lax.top_k(jnp.where(mask, -key, -jnp.inf), size)
  chosen = (values > -jnp.inf) & (jnp.arange(size) < limit)
  return jnp.zeros_like(mask).at[indices].set(chosen)
