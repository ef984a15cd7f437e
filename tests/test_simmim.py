"""Masked-image pre-training: masks, targets, losses against NumPy, a tiny model of two tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.errors import UserError
from sm3det_jax import checkpoint, sharding, simmim
from sm3det_jax import config as config_lib
from sm3det_jax import model as models
from sm3det_jax.config import phases
from sm3det_jax.interop import convert, ringmoe
from sm3det_jax.optim import groups

ARGUMENTS = dict(image=32, embed=8, depths=[1, 1], heads=[1, 2], window=4, ratio=2, NS=2, NC=2,
                 mask_patch=8, modalities=['opt', 'sar_l1'])  # fmt: skip


def made(**changes):
  config = ringmoe.config(ARGUMENTS | changes)
  return config, models.build(config)


def batch_of(config, n=2):
  draw = lambda i, bands: jax.random.normal(jax.random.key(i), (n, 32, 32, bands))
  return {name: {'images': draw(i, t.bands)} for i, (name, t) in enumerate(config.tasks.items())}


@pytest.fixture(scope='module')
def paper():
  config, model = made()
  return config, model, jax.jit(model.init)(jax.random.key(0)), batch_of(config)


def test_the_first_cells_of_an_order_are_masked():
  order = jnp.asarray([7, 0, 4, 1, 2, 3, 5, 6])
  got = simmim.mask(order, image=(16, 32), cell=8, patch=4, ratio=0.3)
  want = np.zeros((4, 8))
  for row, column in ((1, 3), (0, 0), (1, 0)):  # ceil(8 x 0.3)
    want[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = 1
  np.testing.assert_array_equal(got, want)
  assert simmim.mask(jnp.arange(36)).shape == (48, 48) and simmim.mask(jnp.arange(36)).sum() == 1408


def test_channels_become_pixels_in_both_orders():
  x = jnp.arange(2 * 3 * 12.0).reshape(1, 2, 3, 12)
  for order, channel in (
    ('dcr', lambda dy, dx, c: (dy * 2 + dx) * 3 + c),
    ('crd', lambda dy, dx, c: c * 4 + dy * 2 + dx),
  ):
    got = simmim.to_pixels(x, 2, order)
    assert got.shape == (1, 4, 6, 3)
    for place in np.ndindex(4, 6, 3):
      y, x_, c = place
      assert got[0, y, x_, c] == x[0, y // 2, x_ // 2, channel(y % 2, x_ % 2, c)]
  with pytest.raises(UserError, match="expected 'dcr' or 'crd'"):
    simmim.to_pixels(x, 2, 'rcd')


def test_losses_count_what_is_masked():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, 2, 8, 8, 3)).astype(np.float32)
  m = rng.integers(0, 2, (2, 4, 4))
  there = np.repeat(np.repeat(m, 2, 1), 2, 2) == 1
  l2, l1 = (simmim.reconstruction_loss(a, b, jnp.asarray(m), k) for k in ('l2', 'l1'))
  np.testing.assert_allclose(l2, ((a - b)[there] ** 2).mean(), rtol=1e-5)
  np.testing.assert_allclose(l1, np.abs((a - b)[there]).mean(), rtol=1e-5)
  assert simmim.reconstruction_loss(a, b, jnp.zeros((2, 4, 4), int)) == 0
  with pytest.raises(UserError, match="expected 'l2' or 'l1'"):
    simmim.reconstruction_loss(a, b, jnp.asarray(m), 'l3')
  np.testing.assert_allclose(simmim.power(a), (a * a).sum(-1, keepdims=True), rtol=1e-5)


def test_masks_are_drawn_for_each_image_and_terms_add_up(paper):
  config, model, variables, batch = paper
  total, (terms, updates) = jax.jit(model.loss)(variables, batch, jax.random.key(1))
  assert set(terms) == {'opt/reconstruction', 'sar_l1/reconstruction', 'moe/balance'}
  np.testing.assert_allclose(total, sum(terms.values()), rtol=1e-6)
  assert updates == {}
  drawn = model._draw(jax.random.key(1), batch['opt']['images'])
  assert (drawn.sum((1, 2)) == 4 * 10).all() and (drawn[0] != drawn[1]).any()  # ceil(16 x 0.6)
  masks = {n: model._draw(jax.random.fold_in(jax.random.key(1), i), b['images'])
           for i, (n, b) in enumerate(batch.items())}  # fmt: skip
  given = {name: b | {'masks': masks[name]} for name, b in batch.items()}
  again, _ = jax.jit(model.loss)(variables, given)
  np.testing.assert_allclose(again, total, rtol=1e-6)
  pictures = jax.jit(model.reconstruct)(variables, given)
  assert {n: p.shape for n, p in pictures.items()} == {
    'opt': (2, 32, 32, 3), 'sar_l1': (2, 32, 32, 1)
  }  # fmt: skip
  for name, target in (('opt', lambda x: x), ('sar_l1', simmim.power)):
    want = simmim.reconstruction_loss(
      pictures[name], target(given[name]['images']), given[name]['masks']
    )
    np.testing.assert_allclose(terms[f'{name}/reconstruction'], want, rtol=1e-5)


def test_what_is_missing_is_named(paper):
  _, model, variables, batch = paper
  with pytest.raises(UserError, match="no masks of 'opt', and no rng"):
    model.loss(variables, batch)
  with pytest.raises(UserError, match="unknown modality 'ms'; the config has opt, sar_l1"):
    model.features(variables, batch['opt']['images'], 'ms')


def test_weights_of_another_width_are_refused(paper, tmp_path):
  config, _, variables, _ = paper
  arrays = ringmoe.to_state_dict(variables, config)
  wide, _ = made(embed=16)
  with pytest.raises(UserError, match=r'patch_embed.0.w: \(4, 4, 3, 8\).*\(4, 4, 3, 16\)'):
    ringmoe.from_state_dict(arrays, wide)
  checkpoint.save_weights(tmp_path, config, variables)
  wide.init_from = str(tmp_path)
  with pytest.raises(UserError, match=r'channels is \(16, 32\), but .* has weights of \(8, 16\)'):
    convert.start_from({'variables': variables}, wide)
  encoder = {k: v for k, v in arrays.items() if k != 'mask_token' and not k.startswith('dec.')}
  back = ringmoe.from_state_dict(encoder, config)
  assert set(back['params']) == {'backbone'}
  assert ringmoe.to_state_dict(back, config).keys() == encoder.keys()


def test_vectors_tables_and_the_mask_token_do_not_decay():
  for profile in ('paper', 'code'):
    config, model = made(profile=profile)
    params = jax.eval_shape(model.init, jax.random.key(0))['params']
    decays = groups.decays(params, phases.groups(config))
    decays = jax.tree_util.tree_leaves_with_path(decays)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, decay), (_, leaf) in zip(decays, leaves, strict=True):
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      bias = name.endswith(('bias', '.b1', '.b2'))
      assert decay == float(not (leaf.ndim == 1 or bias or name.endswith('bias_table'))), name


@pytest.mark.slow
@pytest.mark.drawn(2)
def test_choices_of_a_capacity_are_lost_in_training_alone():
  config, model = made(profile='code', cf=0.5, k=1)
  variables, batch = jax.jit(model.init)(jax.random.key(0)), batch_of(config)
  _, (_, updates) = jax.jit(model.loss)(variables, batch, jax.random.key(1))
  dropped = updates['metrics']['mean']
  assert set(dropped) == {
    f'dropped/stage{i}_block0/{group}/{task}'
    for i in (0, 1) for group in ('spec', 'coll') for task in config.tasks
  }  # fmt: skip
  for layer in {name.rpartition('/')[0] for name in dropped}:
    opt, sar = (dropped[f'{layer}/{task}'] for task in config.tasks)
    assert (opt + sar) / 2 >= 0.5 - 1e-6
    if layer.endswith('coll'):  # whose queues are modality by modality
      assert opt < sar
  stages, _ = jax.jit(model.features, static_argnums=2)(variables, batch['opt']['images'], 'opt')
  dropless = models.build(ringmoe.config(ARGUMENTS | dict(profile='code', cf=None)))
  again, _ = jax.jit(dropless.features, static_argnums=2)(variables, batch['opt']['images'], 'opt')
  np.testing.assert_allclose(stages[-1], again[-1], atol=1e-5)


@pytest.mark.parametrize(
  'argument, message',
  [
    ('size=huge', "no size 'huge', only giant, base, tiny"),
    ('profile=codes', "profile='codes': expected paper, code"),
    ('modalities=opt+sar', "modality 'sar': expected some of opt, sar_l1, sar_l2, ms, each once"),
    ('modalities=', 'no modality'),
    ('without=all', 'without=all: expected specialised, collaborative, shared'),
    ('modalities=opt,sar_target=pixel', 'sar_l1 is none of the modalities'),
    ('sar_target=phase', "target='phase': expected 'pixel' or 'power'"),
    ('collaborative=0,without=shared,size=x', "no size 'x'"),
  ],
)
def test_arguments_that_do_not_hold_are_named(argument, message):
  with pytest.raises(UserError, match=message):
    config_lib.load([f'--config=ringmoe:{argument}'])


@pytest.mark.parametrize(
  'change, message',
  [
    ('simmim.cell=36', 'config.simmim.cell of 36 px does not divide it'),
    ('simmim.cell=6', 'no multiple of the patches of 4 px'),
    ('tasks.ms.size=(200, 192)', r'size=\(200, 192\): config.simmim.cell of 32 px does not divide'),
    ('task_balance=dla', "config.model='simmim' sums its losses"),
    ('moe.top_k=3', 'top_k=3: there are 2 specialised experts'),
    ('tasks.ms.mean=(0.0,)', 'bands=4 but 1 means'),
    ('backbone.collaborative=((4,), (4, 4), (4, 4), (4, 4))', 'expected 2 numbers, one a block'),
  ],
)
def test_configs_that_do_not_hold_are_named(change, message):
  with pytest.raises(UserError, match=message):
    config_lib.load(['--config=ringmoe:size=tiny', f'--config.{change}'])


def test_arguments_change_the_model():
  load = lambda text: config_lib.load([f'--config=ringmoe:{text}'])
  assert list(load('').tasks) == list(ringmoe.ringmoe.MODALITIES)
  assert list(load('modalities=ms+opt').tasks) == ['opt', 'ms']
  assert load('sar_target=pixel').tasks.sar_l1.target == 'pixel'
  assert load('').tasks.sar_l1.target == 'power'
  assert load('without=collaborative').backbone.collaborative[2] == (0,) * 18
  assert load('without=specialised').backbone.specialised == 0
  assert load('without=shared').backbone.shared is False
  assert load('collaborative=2').backbone.collaborative[0] == (2, 2)
  assert not any(load('dense=1').moe.blocks)
  code = load('profile=code,size=base')
  assert (code.moe.capacity_factor, code.simmim.loss, code.optim.bias_correction) == (
    1.2,
    'l1',
    False,
  )


@pytest.mark.parametrize(
  'mesh, message',
  [
    (dict(data=1, expert=8), r'expert=8 does not divide config.backbone.collaborative\[0\]\[0\]=4'),
    (dict(data=2, expert=3), 'expert=3 does not divide config.backbone.specialised of all tasks=8'),
    (
      dict(data=1, expert=1, model=3),
      '128 hidden channels do not divide .* of 3',
    ),
  ],
)
def test_a_mesh_divides_experts_and_hidden_channels(mesh, message):
  config = config_lib.load(['--config=ringmoe:size=tiny', '--config.batch_size=96'])
  found = sharding.make_mesh(mesh)
  with pytest.raises(UserError, match=message), jax.set_mesh(found):
    sharding.check_mesh(config, found)
    model = models.build(config)
    jax.eval_shape(model.init, jax.random.key(0))


@pytest.mark.slow
@pytest.mark.drawn(3)
@pytest.mark.parametrize('changes', [{}, dict(profile='code', cf=0.8, k=1)])
def test_a_step_is_the_same_on_every_mesh(changes):
  """Losses and gradients of eight images of each modality, with the masks of one key."""
  config, model = made(**changes)
  variables, batch = jax.jit(model.init)(jax.random.key(0)), batch_of(config, 8)
  run = lambda v, b: model.loss(v, b, jax.random.key(1))
  gradient = jax.value_and_grad(run, has_aux=True)
  (want, _), slopes = jax.jit(gradient)(variables, batch)
  mesh = sharding.make_mesh(dict(data=2, expert=2, model=2))
  with jax.set_mesh(mesh):
    placed = sharding.put_tree(variables, mesh), sharding.put_batch(batch, mesh)
    (got, _), found = jax.jit(gradient)(*placed)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(slopes), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-4 * float(jnp.abs(b).max()) + 1e-6)
