"""NMS against the textbook greedy loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm3det_jax.geometry import iou, nms


def crowd(seed, n, objects, oriented):
  """Boxes around a few objects."""
  r = np.random.default_rng(seed)
  center, size = r.uniform(0, 300, (objects, 2)), r.uniform(10, 60, (objects, 2))
  which = r.integers(0, objects, n)
  size = size[which] * np.exp(r.normal(0, 0.2, (n, 2)))
  center = center[which] + r.normal(0, 0.2, (n, 2)) * size
  boxes = np.concatenate([center, size, r.uniform(-2, 2, (n, 1))], 1)
  if not oriented:
    boxes = np.concatenate([center - size / 2, center + size / 2], 1)
  return boxes.astype(np.float32), r.uniform(0, 1, n).astype(np.float32)


def greedy(boxes, scores, threshold, labels=None, valid=None):
  oriented = boxes.shape[1] == 5
  overlap = np.asarray(jax.jit(iou.rotated_iou if oriented else iou.hbb_iou)(boxes, boxes))
  kept = []
  for i in np.argsort(-scores, kind='stable'):
    if valid is not None and not valid[i]:
      continue
    rivals = [j for j in kept if labels is None or labels[j] == labels[i]]
    worst = max((overlap[j, i] for j in rivals), default=-1)
    if not (worst >= threshold if oriented else worst > threshold):
      kept.append(int(i))
  return kept


def run(boxes, scores, threshold, max_outputs, **kwargs):
  indices, valid = jax.jit(nms.nms, static_argnums=3)(
    boxes, scores, threshold, max_outputs, **kwargs
  )
  assert indices.shape == valid.shape == (max_outputs,) and indices.dtype == jnp.int32
  indices, valid = np.asarray(indices), np.asarray(valid)
  assert (np.diff(valid.astype(int)) <= 0).all() and (indices[~valid] == 0).all()
  return indices[valid].tolist()


@pytest.mark.parametrize('oriented', [False, True])
@pytest.mark.parametrize('threshold', [0.1, 0.5])
@pytest.mark.parametrize('n,objects', [(300, 40), (300, 3)])
def test_equals_the_greedy_loop(oriented, threshold, n, objects):
  boxes, scores = crowd(n + objects, n, objects, oriented)
  want = greedy(boxes, scores, threshold)
  assert run(boxes, scores, threshold, 300) == want
  assert run(boxes, scores, threshold, 10) == want[:10]


@pytest.mark.parametrize('oriented', [False, True])
def test_labels_and_valid(oriented):
  boxes, scores = crowd(1, 300, 10, oriented)
  r = np.random.default_rng(2)
  labels, valid = r.integers(0, 4, 300), r.uniform(size=300) < 0.6
  want = greedy(boxes, scores, 0.3, labels, valid)
  assert run(boxes, scores, 0.3, 300, labels=labels, valid=valid) == want
  assert len(want) > len(greedy(boxes, scores, 0.3, None, valid))


def test_many_candidates_of_few_boxes():
  """Every box once a class, as after a class-agnostic head; most below the score threshold."""
  boxes, _ = crowd(3, 50, 15, True)
  scores = np.random.default_rng(4).uniform(0, 1, (50, 6)).astype(np.float32).ravel()
  boxes, labels, valid = boxes.repeat(6, 0), np.tile(np.arange(6), 50), scores > 0.7
  want = greedy(boxes, scores, 0.1, labels, valid)
  assert run(boxes, scores, 0.1, 300, labels=labels, valid=valid) == want


@pytest.mark.parametrize('n', [1, nms.TILE, nms.TILE + 1])
def test_sizes_around_a_tile(n):
  boxes, scores = crowd(n, n, max(n // 4, 1), False)
  assert run(boxes, scores, 0.5, nms.TILE + 3) == greedy(boxes, scores, 0.5)


@pytest.mark.parametrize('width', [4, 5])
def test_nothing_to_keep(width):
  assert run(jnp.zeros((0, width)), jnp.zeros(0), 0.5, 3) == []
  scores, valid = jnp.asarray([jnp.nan, -jnp.inf, 0.5, jnp.nan]), jnp.ones(4, bool)
  assert run(jnp.ones((4, width)), scores, 0.5, 3, valid=valid) == [2]
  assert run(jnp.ones((4, width)), scores, 0.5, 3, valid=~valid) == []


def test_ties_keep_the_order_of_indices():
  boxes = np.tile(np.float32([[0, 0, 9, 9], [50, 0, 59, 9]]), (150, 1))
  assert run(boxes, np.ones(300, np.float32), 0.5, 300) == [0, 1]
  apart = np.arange(300, dtype=np.float32)[:, None] * 20 + np.float32([[0, 0, 9, 9]])
  assert run(apart, np.ones(300, np.float32), 0.5, 300) == list(range(300))


def test_at_the_threshold_only_oriented_boxes_are_suppressed():
  scores = jnp.asarray([0.9, 0.8])
  assert run(jnp.asarray([[0.0, 0, 2, 1], [0, 0, 1, 1]]), scores, 0.5, 2) == [0, 1]
  assert run(jnp.asarray([[1, 0.5, 2, 1, 0], [0.5, 0.5, 1, 1, 0]]), scores, 0.5, 2) == [0]


def test_chain_of_suppressions():
  """Each box overlaps the next only: every second one stays, across tiles."""
  x = np.arange(300, dtype=np.float32)[:, None] * 6
  boxes = x * np.float32([[1, 0, 1, 0]]) + np.float32([[0, 0, 10, 10]])
  scores = np.linspace(1, 0.1, 300, dtype=np.float32)
  assert run(boxes, scores, 0.2, 300) == list(range(0, 300, 2))


@pytest.mark.parametrize('oriented', [False, True])
def test_under_vmap_and_map(oriented):
  images = [crowd(seed, 300, 5 + 20 * seed, oriented) for seed in range(3)]
  boxes, scores = (np.stack(x) for x in zip(*images, strict=True))
  one = lambda boxes, scores: nms.nms(boxes, scores, 0.3, 300)
  want = [greedy(b, s, 0.3) for b, s in images]
  for batched in (jax.vmap(one), lambda *x: jax.lax.map(lambda y: one(*y), x)):
    indices, valid = map(np.asarray, jax.jit(batched)(boxes, scores))
    assert [i[v].tolist() for i, v in zip(indices, valid, strict=True)] == want


def test_far_from_the_origin():
  """The bound that skips pairs must not lose any to rounding of large coordinates."""
  boxes, scores = crowd(5, 300, 20, True)
  boxes[:, 2:4] /= 10
  boxes[:, :2] = boxes[:, :2] / 10 + 20000
  assert run(boxes, scores, 0.3, 300) == greedy(boxes, scores, 0.3)


def test_without_a_threshold_every_usable_box_comes_back_best_first():
  boxes, scores = crowd(1, 40, 5, False)
  index, valid = map(np.asarray, nms.nms(boxes, scores, None, 3, valid=scores > 0.5))
  best = np.argsort(-scores, kind='stable')
  want = np.where(scores[best] > 0.5, best, 0)
  np.testing.assert_array_equal(index, want)
  np.testing.assert_array_equal(valid, scores[best] > 0.5)


@pytest.mark.parametrize('specific', [True, False])
def test_by_class_equals_one_class_after_the_other(specific):
  rng = np.random.default_rng(5)
  n, classes = 40, 3
  corner = rng.uniform(0, 30, (n, classes if specific else 1, 2))
  boxes = np.concatenate([corner, corner + rng.uniform(5, 20, corner.shape)], -1).astype('f')
  scores = rng.uniform(0, 1, (n, classes)).astype('f')
  one, want = jax.jit(lambda *x, valid: nms.nms(*x, 0.5, n, valid=valid)), []
  for k in range(classes):
    own = boxes[:, k if specific else 0]
    index, valid = one(own, scores[:, k], valid=scores[:, k] > 0.3)
    rows = np.asarray(index)[np.asarray(valid)]
    want += [(scores[r, k], k, *own[r]) for r in rows]
  want = sorted(want, reverse=True)
  got = jax.jit(lambda *x: nms.multiclass_nms(*x, 0.3, 0.5, 100))(boxes, scores)
  b, s, k, valid = (np.asarray(x) for x in got)
  np.testing.assert_array_equal(np.column_stack([s, k, b])[valid], np.asarray(want, 'f'))
