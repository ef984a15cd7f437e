"""The model's interface: parameters, groups, modes, padding, any classes, half precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import batch_of, tiny_config

from sm3det_jax import preprocess
from sm3det_jax.detector import build
from sm3det_jax.layers import convolution, regularisation
from sm3det_jax.optim import optimizer


@pytest.fixture(scope='module')
def model():
  config = tiny_config(groups=1)
  detector = build(config)
  variables = jax.jit(detector.init)(jax.random.key(0))
  batch = preprocess.normalise_batch(jax.tree.map(jnp.asarray, batch_of(config, 0)), config)
  return config, detector, variables, batch


@pytest.fixture(scope='module')
def loss(model):
  _, detector, _, _ = model
  return jax.jit(detector.loss, static_argnames='sampling')


@pytest.mark.slow
def test_the_published_models_have_their_parameters():
  from sm3det_jax.config import default

  config = default()
  count = lambda: sum(
    x.size for x in jax.tree.leaves(jax.eval_shape(build(config).init, jax.random.key(0)))
  )
  assert round(count() / 1e6, 3) == 178.174  # the official model's, by its own count
  config.moe.blocks = ((), (), (), ())
  assert round(count() / 1e6, 3) == 65.719


def test_every_parameter_has_a_group_and_every_term_too(model):
  _, detector, variables, _ = model
  groups = optimizer.parameter_groups(variables['params'], detector.term_groups)
  assert set(jax.tree.leaves(groups)) == {*detector.term_groups.values(), 'shared'}
  assert len(detector.term_groups) == 11


def test_experts_start_as_copies_of_one(model):
  params = model[2]['params']['backbone']['stage2_block0']['moe']
  w1 = np.asarray(params['experts_w1'])
  assert w1.std() > 0 and (w1 == w1[:1]).all()


def test_terms_are_finite_and_their_sum_is_the_loss(model, loss):
  _, detector, variables, batch = model
  total, (terms, updates) = loss(variables, batch, jax.random.key(1))
  assert set(terms) == {*detector.term_groups, 'moe/balance'} and updates == {}
  assert all(np.isfinite(v) for v in terms.values())
  np.testing.assert_allclose(total, sum(terms.values()), rtol=1e-6)


def test_images_without_objects_give_finite_terms(model, loss):
  _, _, variables, batch = model
  empty = {k: b | {'valid': jnp.zeros_like(b['valid'])} for k, b in batch.items()}
  total, (terms, _) = loss(variables, empty, jax.random.key(1))
  assert np.isfinite(total)
  for name in ('sar/bbox', 'rgb/rpn_bbox', 'ifr/bbox'):
    assert terms[name] == 0, name


def test_boxes_in_the_padding_rows_change_nothing(model, loss):
  _, _, variables, batch = model
  hidden = lambda b: (
    b | {'boxes': jnp.where(b['valid'][..., None], b['boxes'], jnp.nan_to_num(b['boxes'] * 50.0))}
  )
  a, _ = loss(variables, batch, jax.random.key(1))
  b, _ = loss(variables, {k: hidden(v) for k, v in batch.items()}, jax.random.key(1))
  assert a == b


@pytest.mark.slow
def test_without_a_key_there_is_no_noise(model, loss):
  _, detector, variables, batch = model
  first, again = (loss(variables, batch, sampling='all')[0] for _ in range(2))
  assert first == again
  other = loss(variables, batch, jax.random.key(2))[0]
  assert other != loss(variables, batch, jax.random.key(3))[0]
  with pytest.raises(ValueError, match="sampling='random' needs an rng"):
    detector.loss(variables, batch)
  with pytest.raises(ValueError, match="'some'"):
    detector.loss(variables, batch, sampling='some')
  with pytest.raises(ValueError, match='unknown task .uv.; the config has sar, rgb, ifr'):
    detector.features(variables, batch['sar']['images'], 'uv')


@pytest.mark.parametrize('task', ['sar', 'rgb'])
def test_detections_stay_inside_and_in_order(model, task):
  config, detector, variables, batch = model
  images = batch[task]['images']
  shapes = jnp.asarray([[40, 52]] * len(images))
  low = 0.001  # untrained scores
  config.tasks[task].head.score_threshold = low
  detector = build(config)
  run = jax.jit(lambda v, x, s: detector.detect(v, x, task, s))
  found = jax.tree.map(np.asarray, run(variables, images, shapes))
  assert found.valid.any()
  for i in range(len(images)):
    scores, boxes = found.scores[i][found.valid[i]], found.boxes[i][found.valid[i]]
    assert (np.diff(scores) <= 0).all() and (scores > low).all()
    right, bottom = boxes[:, -2 if task == 'sar' else 0], boxes[:, -1 if task == 'sar' else 1]
    assert (right <= 52).all() and (bottom <= 40).all() and (boxes[:, :2] >= 0).all()
    if task == 'rgb':
      assert (boxes[:, 2] >= boxes[:, 3]).all() and (np.abs(boxes[:, 4]) <= np.pi / 2).all()


@pytest.mark.slow
def test_half_precision_stays_near(model):
  config, _, variables, batch = model
  config.dtype = 'bfloat16'
  images = batch['rgb']['images']
  half, full = (
    jax.jit(lambda v, x, d=d: d.features(v, x, 'rgb'))(variables, images)
    for d in (build(config), model[1])
  )
  config.dtype = 'auto'
  assert half[0].dtype == jnp.bfloat16 and full[0].dtype == jnp.float32
  error = np.abs(np.asarray(half[0], np.float32) - np.asarray(full[0]))
  assert np.median(error) < 0.02 * np.abs(np.asarray(full[0])).max()


@pytest.mark.parametrize('shape, size', [((2, 9, 11, 5), 7), ((1, 4, 6, 3), 3)])
def test_depthwise_equals_the_grouped_convolution(shape, size):
  x = jax.random.normal(jax.random.key(0), shape)
  k = jax.random.normal(jax.random.key(1), (size, size, shape[-1]))
  cotangent = jax.random.normal(jax.random.key(2), shape)

  def run(f):
    value = lambda x, k: (f(x, k) * cotangent).sum()
    return jax.jit(lambda x, k: (f(x, k), *jax.grad(value, (0, 1))(x, k)))(x, k)

  for got, want in zip(run(convolution.depthwise), run(convolution._grouped), strict=True):
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_depthwise_gives_the_other_platforms_a_convolution():
  x, k = jnp.zeros((1, 8, 8, 4)), jnp.zeros((7, 7, 4))
  text = {
    p: jax.jit(convolution.depthwise).trace(x, k).lower(lowering_platforms=(p,)).as_text()
    for p in ('cpu', 'cuda', 'tpu')
  }
  assert 'stablehlo.convolution' not in text['cpu']
  assert 'stablehlo.convolution' in text['cuda'] and 'stablehlo.convolution' in text['tpu']


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
  x = jnp.ones((4000, 2, 2, 1))
  y = np.asarray(regularisation.drop_path(x, 0.25, jax.random.key(0)))
  assert set(np.unique(y.round(4))) == {0, np.float32(1.3333)} and abs(y.mean() - 1) < 0.05
  assert (y == y[:, :1, :1]).all()
  assert regularisation.drop_path(x, 0.25, None) is x
