"""Greedy non-maximum suppression with static shapes, for horizontal and oriented boxes."""

import jax
import jax.numpy as jnp

from sm3det_jax.geometry import iou, obb

TILE = 128  # candidates that are compared with the kept ones, and among themselves, at a time


def nms(
  boxes: jax.Array,
  scores: jax.Array,
  iou_threshold: float | None,
  max_outputs: int,
  labels: jax.Array | None = None,
  valid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Keeps, in the order of the scores, every box that no kept one suppresses.

  Candidates are taken in tiles of descending score; each tile is compared with the boxes kept so
  far, then with itself until nothing changes. The loop ends with the last valid candidate or the
  last wanted output.

  Works under jit and vmap. Under vmap all images loop as long as the slowest one, so on CPU
  `jax.lax.map` over images is faster. Over a batch sharded on several devices use neither alone but
  `jax.shard_map` around them (with check_vma=False): `lax.map` would gather the whole batch on
  every device, `vmap` would synchronise the devices in every round.

  Args:
    boxes: HBB [n, 4], suppressed at IoU > iou_threshold, or OBB [n, 5], at IoU >= iou_threshold
      (each as the reference's operator does).
    scores: [n]; equal scores keep the order of their indices, NaN and -inf are never kept.
    iou_threshold: see boxes. None: no box suppresses another, and all n come back.
    max_outputs: static number of outputs.
    labels: int [n]; boxes of different labels do not suppress each other. None: all are compared.
    valid: bool [n]; the others take no part. None: all do.

  Returns:
    (indices int32 [max_outputs] into boxes, valid bool [max_outputs]); invalid indices are 0.
  """
  boxes, scores = jnp.asarray(boxes), jnp.asarray(scores)
  n, width = boxes.shape
  if n == 0:
    return jnp.zeros(max_outputs, jnp.int32), jnp.zeros(max_outputs, bool)
  usable = scores > -jnp.inf
  usable = usable if valid is None else usable & jnp.asarray(valid)
  labels = jnp.zeros(n, jnp.int32) if labels is None else jnp.asarray(labels)
  key = jnp.where(usable, -scores, jnp.inf)
  order = jax.lax.sort((key, jnp.arange(n, dtype=jnp.int32)), num_keys=1)[1]
  if iou_threshold is None:
    return jnp.where(usable[order], order, 0), usable[order]
  tile = min(TILE, n)
  order = jnp.pad(order, (0, -n % tile))
  total = usable.sum()
  boxes, labels = boxes[order], labels[order]
  suppresses = _hbb_suppresses if width == 4 else _obb_suppresses

  def compare(rows, columns, mask):
    mask &= labels[rows][:, None] == labels[columns][None]
    return suppresses(boxes[rows], boxes[columns], mask, iou_threshold)

  def step(state):
    start, count, kept = state
    columns = start + jnp.arange(tile)
    alive = columns < total
    alive = _compare_with_kept(compare, kept, count, columns, alive)
    earlier = jnp.arange(tile)[:, None] < jnp.arange(tile)[None]
    keep = _settle(compare(columns, columns, earlier & alive[:, None] & alive[None]), alive)
    slots = jnp.where(keep, count + jnp.cumsum(keep) - 1, kept.shape[0])
    return (
      start + tile,
      count + keep.sum(),
      kept.at[slots].set(columns.astype(kept.dtype), mode='drop'),
    )

  capacity = max_outputs + -max_outputs % tile
  state = (0, 0, jnp.zeros(capacity, jnp.int32))
  state = jax.lax.while_loop(lambda s: (s[0] < total) & (s[1] < max_outputs), step, state)
  found = jnp.arange(max_outputs) < state[1]
  return jnp.where(found, order[state[2][:max_outputs]], 0), found


def multiclass_nms(
  boxes: jax.Array,
  scores: jax.Array,
  score_threshold: float,
  iou_threshold: float | None,
  max_outputs: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """The best (box, class) pairs after NMS among the boxes of each class.

  Args:
    boxes: [n, 1 | K, 4 | 5], of all classes or of each; see `nms`.
    scores: [n, K].
    score_threshold: pairs that score less or the same take no part.
    iou_threshold: see `nms`.
    max_outputs: static number of outputs.

  Returns:
    (boxes [max_outputs, 4 | 5], scores, labels, valid, each [max_outputs]), best first.
  """
  classes = scores.shape[1]
  scores, pair = scores.reshape(-1), jnp.arange(scores.size)
  labels = pair % classes
  boxes = boxes[pair // classes, labels % boxes.shape[1]]
  index, valid = nms(
    boxes, scores, iou_threshold, max_outputs, labels=labels, valid=scores > score_threshold
  )
  return boxes[index], scores[index], labels[index], valid


def _compare_with_kept(compare, kept, count, columns, alive):
  """Which of the candidates `columns` [T] survive the first `count` entries of `kept`."""
  tile = columns.shape[0]

  def step(state):
    start, alive = state
    rows = jax.lax.dynamic_slice(kept, (start,), (tile,))
    mask = (start + jnp.arange(tile) < count)[:, None] & alive[None]
    return start + tile, alive & ~compare(rows, columns, mask).any(0)

  more = lambda state: (state[0] < count) & (state[0] < kept.shape[0])
  return jax.lax.while_loop(more, step, (0, alive))[1]


def _settle(suppresses, alive):
  """Greedy survivors [T] of a tile, given the upper-triangular matrix of who suppresses whom."""

  def step(state):
    _, keep = state
    return keep, alive & ~(suppresses & keep[:, None]).any(0)

  return jax.lax.while_loop(lambda s: (s[0] != s[1]).any(), step, (~alive, alive))[1]


def _hbb_suppresses(a, b, mask, threshold):
  return mask & (iou.hbb_iou(a, b) > threshold)


def _obb_suppresses(a, b, mask, threshold):
  """Rotated IoU >= threshold where mask [n, m]; computed only for pairs that may reach it.

  The enclosing HBBs bound the IoU from above. Every column then settles one of its pending pairs a
  round, so the number of rounds is the largest number of close neighbours of a box.
  """
  area_a, area_b = obb.area(a)[:, None], obb.area(b)[None]
  bound = jnp.minimum(_envelope_intersection(a, b), jnp.minimum(area_a, area_b))
  # 1.001: what rounding may take from the bound
  pending = mask & (bound * 1.001 >= threshold * (area_a + area_b - bound))
  columns = jnp.arange(b.shape[0])

  def step(state):
    pending, result = state
    rows = pending.argmax(0)
    hit = (iou.rotated_iou_aligned(a[rows], b) >= threshold) & pending[rows, columns]
    hit |= result[rows, columns]  # not at[].max, which other runtimes have for numbers alone
    return pending.at[rows, columns].set(False), result.at[rows, columns].set(hit)

  result = jnp.zeros(mask.shape, bool)
  return jax.lax.while_loop(lambda s: s[0].any(), step, (pending, result))[1]


def _envelope_intersection(a, b):
  """Intersection areas [n, m] of the HBBs around OBB [n, 5] and [m, 5], from centre distances."""
  half_a, half_b = obb.envelope(a)[:, None] * 0.5, obb.envelope(b)[None] * 0.5
  sides = half_a + half_b - jnp.abs(a[:, None, :2] - b[None, :, :2])
  sides = jnp.clip(sides, 0, 2 * jnp.minimum(half_a, half_b))
  return sides[..., 0] * sides[..., 1]
