"""What every kind of head must do; a kind is tested by being registered.

The head of docs/extending.md goes through it too, under the name of its defaults.
"""

import functools
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from ml_collections import ConfigDict, FrozenConfigDict
from tiny import tiny_config

from data_pipelines.errors import UserError
from sm3det_jax import config as config_lib
from sm3det_jax.analysis import account
from sm3det_jax.config.heads import HEADS
from sm3det_jax.config.registry import HeadKind
from sm3det_jax.detector import build
from sm3det_jax.geometry import iou
from sm3det_jax.heads import head_class
from sm3det_jax.interop import heads as official_heads
from sm3det_jax.interop import layouts, matching, official

SIZE, CHANNELS, CLASSES, OBJECTS = 64, 32, 3, 3
STEPS = 160
SMALL = {  # what makes a head small, at any depth of its config
  'channels': CHANNELS, 'convs': 1, 'fc_channels': 32, 'samples': 64, 'pre_nms': 64,
  'max_proposals': 32, 'max_detections': 10,
}  # fmt: skip
BOXES = {  # none as far from one anchor as from another: rounding would choose
  'hbb': [[2, 4, 34, 36], [30, 20, 60, 62], [20, 10, 50, 40]],
  'obb': [[20.6, 22.3, 30, 14, 0.5], [44.7, 41.6, 14, 30, 9], [31.3, 28.9, 20, 18, 0.2]],
}
PAGE = (pathlib.Path(__file__).parents[1] / 'docs/extending.md').read_text()


def of_page():
  """(kind, row) of the head that docs/extending.md shows."""
  code, found = re.search(r'## A head\n.*?```python\n(.*?)```', PAGE, re.S)[1], {}
  exec(code, found)
  return 'one_anchor', HeadKind('hbb', found['one_anchor'], found['OneAnchor'])


HEADS_OF_PAGE = dict([of_page()])
KINDS = [*HEADS, *HEADS_OF_PAGE]
LONG = {'faster_rcnn', 'cascade_rcnn', 'roi_transformer', 's2anet'}  # to compile
LEFT = {'gfl': 0.5}  # of the loss once it has learned; entropies of distances stay
each = pytest.mark.parametrize('kind', KINDS)
each_slowly = pytest.mark.parametrize(
  'kind', [pytest.param(k, marks=pytest.mark.slow) if k in LONG else k for k in KINDS]
)


@pytest.fixture(scope='module', autouse=True)
def page_is_registered():
  with pytest.MonkeyPatch.context() as patch:
    for kind, row in HEADS_OF_PAGE.items():
      patch.setitem(HEADS, kind, row)
    yield


def small(config):
  """A config with every size in it that of `SMALL`."""
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      small(value)
    elif key in SMALL:
      config[key] = SMALL[key]
  return config


def neck(stages, start):
  """Five levels without parameters: stages as they are, then every second cell."""
  levels = list(stages[start:])
  while len(levels) < 5:
    levels.append(levels[-1][:, ::2, ::2])
  return levels


class Subject:
  """A small head of a kind with its inputs, its programs compiled once for all tests."""

  def __init__(self, kind):
    self.row, self.cls = HEADS[kind], head_class(kind)
    self.config = FrozenConfigDict(small(config_lib.head(kind)))
    self.head = self.cls(self.config, CLASSES)
    keys = jax.random.split(jax.random.key(0), 5)
    sides = (16, 8, 4, 2)
    stages = [
      jax.random.normal(k, (1, n, n, CHANNELS)) for k, n in zip(keys[:4], sides, strict=True)
    ]
    self.inputs = self.head.inputs(stages, neck)
    self.canvas = ((SIZE, SIZE),) if self.cls.CANVAS else ()
    self.shapes = jnp.asarray([[SIZE, SIZE]])
    made = jax.jit(lambda k: self.head.init(k, self.inputs, *self.canvas, method='touch'))
    self.params = made(keys[4])['params']
    self.traced = 0
    self.grads = jax.jit(lambda *args: self._grads(*args))
    self.detect = jax.jit(lambda *args: self._apply('detect', *args))

  def _apply(self, method, params, features, *args):
    return self.head.apply({'params': params}, features, *self.canvas, *args, method=method)

  def loss(self, params, features, targets):
    terms = self._apply('loss', params, features, targets, None, 'all')
    return sum(terms.values()), terms

  def _grads(self, params, features, targets):
    self.traced += 1
    return jax.grad(self.loss, has_aux=True)(params, features, targets)

  def targets(self, count):
    """One image with so many objects."""
    boxes = jnp.asarray([BOXES[self.row.box]], jnp.float32)
    valid = jnp.arange(OBJECTS)[None] < count
    boxes = jnp.where(valid[..., None], boxes, 0)  # as batches are padded
    labels = jnp.asarray([[2, 0, 1]])
    return {'boxes': boxes, 'labels': labels, 'valid': valid, 'shapes': self.shapes}


subject = functools.cache(Subject)


@each_slowly
def test_losses_and_gradients_are_finite_however_many_objects(kind):
  s = subject(kind)
  for count in (0, 1, OBJECTS):
    grads, terms = s.grads(s.params, s.inputs, s.targets(count))
    assert set(terms) == set(s.cls.groups(s.config))
    for name, value in (terms | traverse_util.flatten_dict(grads, sep='/')).items():
      assert np.isfinite(value).all(), (count, name)
    assert all(v.dtype == jnp.float32 and v.shape == () for v in terms.values())
  assert s.traced == 1
  # with objects everything that `touch` made learns, and it all has a group
  idle = [k for k, g in traverse_util.flatten_dict(grads, sep='/').items() if not np.any(g)]
  assert not idle
  assert set(s.params) == {*s.cls.groups(s.config).values(), *s.cls.SHARED}


@pytest.mark.parametrize(
  'kind',
  [k if k in HEADS_OF_PAGE else pytest.param(k, marks=pytest.mark.slow) for k in KINDS],
)
def test_nothing_is_learned_of_regions_to_ignore(kind):
  s = subject(kind)
  grads = jax.jit(jax.grad(s.loss, has_aux=True))
  everywhere = {'hbb': [-9e3, -9e3, 9e3, 9e3], 'obb': [0.0, 0, 2e4, 2e4, 0]}[s.row.box]

  def targets(count, ignored):
    """Objects, and behind them a region around all anchors and proposals."""
    plain = s.targets(count)
    return plain | {
      'boxes': plain['boxes'].at[0, -1].set(jnp.asarray(everywhere)),
      'ignored': jnp.asarray([[False, False, ignored]]),
    }

  for part in grads(s.params, s.inputs, targets(0, True)):
    assert not any(np.any(x) for x in jax.tree.leaves(part))
  learned, one = grads(s.params, s.inputs, targets(1, True))
  assert any(np.any(x) for x in jax.tree.leaves(learned))
  _, want = s.grads(s.params, s.inputs, s.targets(1))
  _, same = grads(s.params, s.inputs, targets(1, False))
  for name, value in want.items():
    np.testing.assert_allclose(same[name], value, rtol=1e-5)
    assert np.isfinite(one[name]) and ('cls' not in name or one[name] != value)


@pytest.mark.parametrize(
  'kind', [k if k == 'gfl' else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]
)
def test_it_learns_two_objects(kind):
  s, targets = subject(kind), subject(kind).targets(2)
  tx, params, totals = optax.adam(optax.linear_schedule(1e-2, 1e-3, STEPS - 60, 60)), s.params, []

  @jax.jit
  def step(params, moments, grads):
    with jax.numpy_dtype_promotion('standard'):  # optax
      updates, moments = tx.update(grads, moments)
    return optax.apply_updates(params, updates), moments

  moments = tx.init(params)
  for _ in range(STEPS):
    grads, terms = s.grads(params, s.inputs, targets)
    params, moments = step(params, moments, grads)
    totals.append(float(sum(terms.values())))
  assert np.isfinite(totals).all() and totals[-1] < LEFT.get(kind, 0.3) * totals[0]
  found = jax.tree.map(lambda x: x[0], s.detect(params, s.inputs, s.shapes))
  good = found.valid & (found.scores > 0.5)
  assert good.sum() == 2
  overlaps = {'hbb': iou.hbb_iou, 'obb': iou.rotated_iou}[s.row.box](
    targets['boxes'][0, :2], found.boxes[:2]
  )
  assert overlaps.max(1).min() > 0.7
  np.testing.assert_array_equal(found.labels[overlaps.argmax(1)], targets['labels'][0, :2])


@each_slowly
def test_detections_have_static_shapes_and_their_order(kind):
  s = subject(kind)
  found = s.detect(s.params, s.inputs, s.shapes)
  places = s.config.max_detections
  assert found.boxes.shape == (1, places, {'hbb': 4, 'obb': 5}[s.row.box])
  assert found.scores.shape == found.labels.shape == found.valid.shape == (1, places)
  assert found.valid.dtype == bool and jnp.issubdtype(found.labels.dtype, jnp.integer)
  assert np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()
  assert (jnp.diff(jnp.where(found.valid, found.scores, -1)) <= 0).all()
  boxes = found.boxes[found.valid]
  if s.row.box == 'obb':  # le90
    assert (boxes[:, 2] >= boxes[:, 3]).all() and (abs(boxes[:, 4]) <= np.pi / 2 + 1e-6).all()
  half = s.detect(s.params, s.inputs, s.shapes // 2)
  assert jax.tree.map(jnp.shape, half) == jax.tree.map(jnp.shape, found)
  inside = half.boxes[half.valid]
  assert (inside[:, : 4 if s.row.box == 'hbb' else 2] <= SIZE // 2).all()


@each_slowly
def test_half_precision_gives_losses_of_float32(kind):
  s = subject(kind)
  inputs = jax.tree.map(lambda x: x.astype(jnp.bfloat16), s.inputs)
  terms = jax.eval_shape(lambda x: s.loss(s.params, x, s.targets(2))[1], inputs)
  assert all(t.dtype == jnp.float32 for t in terms.values())


@pytest.mark.slow
@pytest.mark.drawn(4)
@each
def test_losses_of_half_precision_are_near_and_rematerialised_ones_equal(kind):
  s, targets = subject(kind), subject(kind).targets(OBJECTS)
  grads, terms = s.grads(s.params, s.inputs, targets)
  halved = jax.tree.map(lambda x: x.astype(jnp.bfloat16), s.inputs)
  _, near = jax.jit(s.loss)(s.params, halved, targets)
  for name, value in near.items():
    np.testing.assert_allclose(value, terms[name], rtol=0.1, atol=0.02, err_msg=name)

  def loss(head, features, targets):
    run = lambda head, *args: head.loss(args[0], *s.canvas, args[1], None, 'all')
    return nn.remat(run)(head, features, targets)

  def total(params):
    new = s.head.apply({'params': params}, s.inputs, targets, method=loss)
    return sum(new.values()), new

  again, same = jax.jit(jax.grad(total, has_aux=True))(s.params)
  for name, value in same.items():
    np.testing.assert_allclose(value, terms[name], rtol=1e-5, err_msg=name)  # other fusions
  for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(grads), strict=True):
    assert abs(a - b).max() <= 1e-5 * abs(b).max()


@each
def test_it_says_which_objects_it_reaches(kind):
  s, targets = subject(kind), subject(kind).targets(2)
  run = jax.jit(lambda *x: s.cls.reached(s.config, (SIZE, SIZE), *x))
  reached = run(targets['boxes'][0], targets['valid'][0])
  assert reached.dtype == bool and reached.tolist() == [True, True, False]
  assert 'objects' in s.cls.REACHED


@each
def test_official_names_and_back(kind):
  s = subject(kind)
  tree = {'heads_x': s.params}
  if not s.row.official:
    with pytest.raises(UserError, match=f"head '{kind}' has no official name"):
      official_heads.entries('x', s.config)
    return
  entries, back = official_heads.entries('x', s.config), {}
  theirs = {}
  for e in entries:
    new = layouts.theirs(e, np.asarray(layouts.get(tree, e.path)))
    assert not new.keys() & theirs.keys()
    theirs |= new
  for e in entries:
    layouts.put(back, e.path, layouts.ours(e, theirs))
  jax.tree.map(np.testing.assert_array_equal, back, tree)


def tiny_with(kind):
  """A tiny config of one task, with a small head of this kind."""
  config, box = tiny_config(groups=1), HEADS[kind].box
  task = next(t for t in config.tasks.values() if HEADS[t.head.type].box == box)
  task.head, task.ratio = small(config_lib.head(kind)), 1
  config.tasks = ConfigDict({'only': task})
  config.batch_size, config.moe.blocks = 1, ((), (), (), ())
  return config_lib.check(config)


@each_slowly
def test_account_counts_it(kind):
  config = tiny_with(kind)
  parts = account.account(config)['parts']
  own = {name: part for name, part in parts.items() if name.startswith('heads_only/')}
  modules = {*head_class(kind).groups(config.tasks.only.head).values(), *head_class(kind).SHARED}
  assert set(own) == {f'heads_only/{module}' for module in modules}
  assert all(part['params'] > 0 and part['gmacs']['only'] > 0 for part in own.values())


def test_a_detector_with_a_nameless_head_has_no_official_names():
  (nameless,) = HEADS_OF_PAGE
  config = tiny_with(nameless)
  with pytest.raises(UserError, match=f"^head '{nameless}' has no official name$"):
    official.to_state_dict({'params': {}}, config)
  rest = official.entries(config, partial=True)
  assert {e.path[0] for e in rest} == {'backbone', 'neck'}
  shapes, state = jax.eval_shape(build(config).init, jax.random.key(0)), {}
  for e in rest:
    state |= layouts.theirs(e, np.zeros(layouts.get(shapes, (e.collection, *e.path)).shape))
  imagenet = {n[9:]: array for n, array in state.items() if n.startswith('backbone.')}
  report = matching.of_state(config, shapes, imagenet, 'file')[1]
  assert not report.problems
  assert 'fresh       params/heads_only/cls/kernel  has no official name' in report.table('fresh')
