"""What every backbone of the registry goes through: a new kind is tested by being registered."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import tiny_config

from data_pipelines.errors import UserError
from sm3det_jax import backbones
from sm3det_jax import config as config_lib
from sm3det_jax.analysis import account
from sm3det_jax.backbones import stages
from sm3det_jax.config.backbones import BACKBONES
from sm3det_jax.interop import backbones as official_backbones
from sm3det_jax.interop import layouts

TASKS = ('a', 'b')


LONG = {'lsknet', 'pvt_v2', 'ringmoe', 'swin', 'swin_v2', 'van'}  # to compile
each = pytest.mark.parametrize('kind', BACKBONES)
each_slowly = pytest.mark.parametrize(
  'kind', [pytest.param(k, marks=pytest.mark.slow) if k in LONG else k for k in BACKBONES]
)


def small(c, kind, **changes):
  """Puts a backbone of four stages of one block into a config, MoE in the last two."""
  config_lib.use_backbone(c, kind)
  sizes = dict(depths=(1,) * 4, channels=(8, 8, 16, 16), heads=(1, 2, 2, 2), window=4,
               windows=(4,) * 4, mlp_ratios=(2.0,) * 4, reductions=(2, 2, 1, 1),
               collaborative=((4,),) * 4, drop_path_rate=0.0, drop_rate=0.0,
               layer_scale=1.0)  # fmt: skip
  c.backbone.update({k: v for k, v in (sizes | changes).items() if k in c.backbone})
  c.moe.update(blocks=((), (), (0,), (0,)), num_experts=4)
  c.remat = changes.get('remat', ())
  return c


def made(kind, **changes):
  c = small(config_lib.default(), kind, **changes)
  c.tasks = {
    name: config_lib.task('hbb', name, modality=modality)
    for name, modality in zip(TASKS, ('opt', 'ms'), strict=True)
  }
  return backbones.build(c, TASKS)


@functools.cache
def slopes(kind, remat=()):
  """(loss, gradients, variables) of two tasks: the mean square of all stages against a target."""
  module, x = made(kind, remat=remat), images()
  variables = jax.jit(module.init)(jax.random.key(0), x)

  def loss(params):
    found = module.apply({**variables, 'params': params}, x)
    return sum(jnp.mean((s - 0.5) ** 2) for stages in found.stages.values() for s in stages)

  gradient = jax.jit(jax.value_and_grad(loss))
  return gradient, variables


def images(size=(64, 96), bands=(3, 3), counts=(2, 1)):
  draw = lambda i: jax.random.normal(jax.random.key(i), (counts[i], *size, bands[i]))
  return {task: draw(i) for i, task in enumerate(TASKS)}


@each
def test_shapes_types_and_taps(kind):
  module, x = made(kind), images()
  variables = jax.eval_shape(module.init, jax.random.key(0), x)
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), x)
  found = jax.eval_shape(module.apply, variables, half, jax.random.key(0))
  for task, n in (('a', 2), ('b', 1)):
    want = [(n, 64 // s, 96 // s, c) for s, c in zip((4, 8, 16, 32), (8, 8, 16, 16), strict=True)]
    assert [o.shape for o in found.stages[task]] == want
    assert [found.taps[task][f'stage{i}'].shape for i in range(4)] == want
    assert found.taps[task]['embed'].shape == want[0]
    assert {o.dtype for o in found.stages[task]} == {jnp.dtype(jnp.bfloat16)}
    k = module.moe['top_k']
    assert {e.shape for e in found.of_layers(task, 'experts').values()} == {
      (n, 4, 6, k), (n, 2, 3, k)
    }  # fmt: skip
  shapes = [jax.tree.map(jnp.shape, usage) for usage in found.usage]
  assert shapes == 2 * [shapes[0]]
  assert {u.dtype for u in jax.tree.leaves(found.usage)} == {jnp.dtype(jnp.float32)}
  again = jax.eval_shape(made(kind, remat=('backbone',)).init, jax.random.key(0), x)
  assert jax.tree.map(jnp.shape, again) == jax.tree.map(jnp.shape, variables)


@each_slowly
def test_tasks_with_stems_of_their_own_share_a_pass(kind):
  """The program of two tasks has as many products as one of one task, but for its stem."""
  module, x = made(kind, stems='per_task'), images(bands=(3, 1))
  variables = jax.eval_shape(module.init, jax.random.key(0), x)
  products = lambda x: str(jax.make_jaxpr(module.apply)(variables, x)).count('dot_general')
  convolutions = lambda x: str(jax.make_jaxpr(module.apply)(variables, x)).count('conv_general')
  count = lambda x: products(x) + convolutions(x)
  assert count(x) == count({'a': x['a']}) + 1


def test_a_mask_needs_a_token():
  module, x = made('convnext'), images()
  mask = {task: jnp.zeros((len(v), 16, 24)) for task, v in x.items()}
  with pytest.raises(ValueError, match='ConvNeXt has no mask token'):
    jax.eval_shape(module.init, jax.random.key(0), x, None, mask)


@pytest.mark.parametrize('stems', ['shared', 'per_task'])
def test_masked_places_hold_the_token_and_the_others_their_embedding(stems, monkeypatch):
  """Of the right image of the right task, though both go through as one batch."""
  counts, token = (2, 4), np.arange(8, dtype=np.float32)
  module, x = made('convnext', stems=stems), images(counts=counts)
  masked = lambda self, x, mask: jnp.where(mask[..., None] != 0, token[None, None, None], x)
  monkeypatch.setattr(type(module), 'masked', masked)
  variables = module.init(jax.random.key(0), x, None, method='_passes')
  mask = {t: np.random.default_rng(i).integers(0, 2, (counts[i], 16, 24)) for i, t in enumerate(x)}

  def embedded(mask):
    ((names, found),) = module.apply(variables, x, mask, method='_passes')
    return dict(zip(names, stages.deinterleave(found, counts), strict=True))

  plain, found = embedded(None), embedded(mask)
  for task in x:
    there = mask[task] == 1
    np.testing.assert_array_equal(found[task], np.where(there[..., None], token, plain[task]))
    np.testing.assert_array_equal((np.asarray(found[task]) == token).all(-1), there)


@each_slowly
def test_slopes_are_finite_and_a_few_steps_learn(kind):
  gradient, variables = slopes(kind)
  params = variables['params']
  tx = optax.adam(3e-2)
  moments, losses = tx.init(params), []
  update = jax.jit(tx.update)
  for _ in range(12):
    loss, grads = gradient(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    with jax.numpy_dtype_promotion('standard'):  # optax
      updates, moments = update(grads, moments)
    params = optax.apply_updates(params, updates)
    losses.append(float(loss))
  assert losses[-1] < 0.7 * losses[0]


@pytest.mark.slow
@pytest.mark.drawn(5)
@each
def test_rematerialised_slopes_are_the_same(kind):
  (gradient, variables), (again, _) = slopes(kind), slopes(kind, remat=('backbone',))
  one, other = gradient(variables['params']), again(variables['params'])
  # a bias before batch norm has no slope but rounding: compared with the largest of all
  largest = max(float(jnp.abs(a).max()) for a in jax.tree.leaves(one[1]))
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * largest)


@each_slowly
def test_tasks_together_are_as_alone(kind):
  module, x = made(kind), images()
  variables = slopes(kind)[1]
  both = jax.jit(module.apply)(variables, x)
  alone = jax.jit(module.apply)(variables, {'b': x['b']})
  for a, b in zip(both.stages['b'], alone.stages['b'], strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max()))


@each
def test_official_names_and_back(kind):
  c = small(config_lib.default(), kind)
  variables = jax.eval_shape(backbones.build(c, tuple(c.tasks)).init, jax.random.key(0),
                             {name: jnp.zeros((1, 64, 64, 3)) for name in c.tasks})  # fmt: skip
  if not BACKBONES[kind].official:
    with pytest.raises(UserError, match=f"backbone '{kind}' has no official name"):
      official_backbones.entries(c)
    return
  rng = np.random.default_rng(0)
  ours = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), variables)
  entries, theirs, back = official_backbones.entries(c), {}, {}
  for e in entries:
    theirs |= layouts.theirs(e, layouts.get(ours, (e.collection, *e.path)))
  for e in entries:
    layouts.put(back, (e.collection, *e.path), layouts.ours(e, theirs))
  jax.tree.map(np.testing.assert_array_equal, back, dict(ours))


@each_slowly
def test_account_counts_it(kind):
  c = config_lib.check(small(tiny_config(groups=1), kind))
  parts = account.account(c)['parts']
  for part in ('backbone', 'backbone/routers', 'backbone/experts'):
    assert parts[part]['params'] > 0 and all(m > 0 for m in parts[part]['gmacs'].values())
