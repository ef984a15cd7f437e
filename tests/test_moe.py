"""Router and dispatch against all experts, finite differences and the official layer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from sm3det_jax.moe import dispatch, layer, router

GRADIENTS = (0, 2, 3, 4, 5, 6)


def case(n, c, e, k, kind, hidden=None, seed=0):
  """Of `expert_ffn`; kind: 'even', 'starved' (expert 1 gets nothing), 'one' (all on 2)."""
  d = hidden or 2 * c
  r = jax.random.split(jax.random.key(seed), 8)
  logits = jax.random.normal(r[0], (n, e))
  if kind == 'starved':
    logits = logits.at[:, 1].set(-1e3)
  if kind == 'one':
    logits = logits.at[:, 2].set(1e3)
  top, indices = jax.lax.top_k(logits, k)
  weights = jax.nn.softmax(jnp.minimum(top, 3))
  params = (
    jax.random.normal(r[1], (e, c, d)) * c**-0.5,
    jax.random.normal(r[2], (e, d)) * 0.1,
    jax.random.normal(r[3], (e, d, c)) * d**-0.5,
    jax.random.normal(r[4], (e, c)) * 0.1,
  )
  x, cotangent = (jax.random.normal(k, (n, c)) for k in r[5:7])
  return (x, indices, weights, *params), cotangent


def by_token(x, indices, weights, w1, b1, w2, b2):
  """The definition, one token at a time, in numpy."""
  x, weights, w1, b1, w2, b2 = (np.asarray(a, np.float64) for a in (x, weights, w1, b1, w2, b2))
  erf = np.vectorize(__import__('math').erf)
  y = np.zeros_like(x)
  for n in range(len(x)):
    for e, g in zip(np.asarray(indices[n]), weights[n], strict=True):
      h = x[n] @ w1[e] + b1[e]
      y[n] += g * ((h * 0.5 * (1 + erf(h / 2**0.5))) @ w2[e] + b2[e])
  return y


def relative(a, b):
  return float(jnp.abs(a - b).max() / (jnp.abs(b).max() + 1e-9))


@pytest.mark.parametrize('implementation', dispatch.IMPLEMENTATIONS)
def test_expert_ffn_follows_its_definition(implementation):
  args, _ = case(37, 6, 4, 2, 'even')
  got = jax.jit(lambda *a: dispatch.expert_ffn(*a, implementation=implementation))(*args)
  np.testing.assert_allclose(got, by_token(*args), atol=2e-6)


CASES = [
  (512, 24, 8, 2, 'even'),
  (300, 16, 16, 3, 'starved'),
  (256, 16, 8, 1, 'one'),
  (70, 8, 4, 4, 'even'),
  (2100, 8, 2, 2, 'one'),
]


@pytest.mark.parametrize('n,c,e,k,kind', CASES)
def test_blocked_equals_dense_in_outputs_and_every_gradient(n, c, e, k, kind):
  args, cotangent = case(n, c, e, k, kind)
  if kind == 'one' and k == e:  # top-k of two experts of which one is far ahead
    assert float(args[2].max()) > 0.5

  def run(implementation):
    f = lambda *a: dispatch.expert_ffn(*a, implementation=implementation)
    g = jax.grad(lambda *a: (f(*a) * cotangent).sum(), argnums=GRADIENTS)
    return jax.jit(lambda *a: (f(*a), *g(*a)))(*args)

  for got, want in zip(run('blocked'), run('dense'), strict=True):
    assert relative(got, want) < 1e-5


def test_expert_linear_blocked_equals_dense():
  args, _ = case(200, 12, 4, 2, 'starved', hidden=20)
  cotangent = jax.random.normal(jax.random.key(5), (200, 20))

  def run(implementation):
    f = lambda *a: (dispatch.expert_linear(*a, implementation=implementation) * cotangent).sum()
    return jax.jit(jax.value_and_grad(f, argnums=(0, 2, 3, 4)))(*args[:5])

  got, want = (jax.tree.leaves(run(i)) for i in ('blocked', 'dense'))
  assert all(relative(a, b) < 1e-5 for a, b in zip(got, want, strict=True))


def test_a_starved_expert_gets_no_gradient_at_all():
  args, cotangent = case(100, 8, 4, 2, 'starved')
  f = lambda *a: (dispatch.expert_ffn(*a) * cotangent).sum()
  g = jax.jit(jax.grad(f, argnums=(3, 4, 5, 6)))(*args)
  for leaf in g:
    assert not np.asarray(leaf[1]).any() and np.asarray(leaf[0]).any()


def test_blocked_gradient_agrees_with_finite_differences():
  with jax.enable_x64(True):
    args, cotangent = case(20, 4, 3, 2, 'even')
    wide = [a.astype(jnp.float64) if a.dtype == jnp.float32 else a for a in args]
    run = lambda x, w1: (dispatch.expert_ffn(x, *wide[1:3], w1, *wide[4:]) * cotangent).sum()
    f, at = jax.jit(run), (wide[0], wide[3])
    gradient = jax.jit(jax.grad(run, argnums=(0, 1)))(*at)
    steps = [jax.random.normal(jax.random.key(i), a.shape, jnp.float64) for i, a in enumerate(at)]
    for move in ((1e-5, 0.0), (0.0, 1e-5)):
      ahead, behind = (
        f(*(a + sign * m * s for a, m, s in zip(at, move, steps, strict=True))) for sign in (1, -1)
      )
      exact = sum((g * s * m).sum() for g, s, m in zip(gradient, steps, move, strict=True))
      np.testing.assert_allclose(exact, (ahead - behind) / 2, rtol=1e-6)


def test_plan_gives_every_choice_a_row_of_its_own_expert():
  indices = jax.random.randint(jax.random.key(0), (97, 3), 0, 5)
  plan = dispatch.make_plan(indices, 5, 8)
  slot, token, expert = np.asarray(plan.slot), np.asarray(plan.token), np.asarray(plan.expert)
  assert len(np.unique(slot)) == slot.size
  np.testing.assert_array_equal(expert[slot // 8], indices)
  np.testing.assert_array_equal(token.reshape(-1)[slot], np.arange(97)[:, None].repeat(3, 1))
  assert (token.reshape(-1) == 97).sum() == token.size - slot.size
  assert (token[int(plan.used) :] == 97).all()


def test_bfloat16_tokens_keep_float32_weight_gradients():
  args, cotangent = case(64, 8, 4, 2, 'even')
  x = args[0].astype(jnp.bfloat16)
  run = lambda x, w1: dispatch.expert_ffn(x, *args[1:3], w1, *args[4:]).astype('float32')
  f = lambda x, w1: (run(x, w1) * cotangent).sum()
  gradient = jax.jit(jax.grad(f, argnums=(0, 1)))
  dx, dw = gradient(x, args[3])
  assert dx.dtype == jnp.bfloat16 and dw.dtype == jnp.float32
  assert relative(dw, gradient(args[0], args[3])[1]) < 3e-2


def test_statistics_and_refusals():
  args, _ = case(40, 8, 4, 2, 'starved')
  _, stats = dispatch.expert_ffn(*args, return_stats=True)
  assert int(stats['load'].sum()) == 80 and int(stats['load'][1]) == 0
  assert float(stats['dropped']) == 0
  with pytest.raises(ValueError, match="'fast'.*blocked"):
    dispatch.expert_ffn(*args, implementation='fast')
  with pytest.raises(ValueError, match='capacity_factor=1.25'):
    dispatch.expert_ffn(*args, capacity_factor=1.25)


@pytest.mark.parametrize('shape', [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_layer_on_a_mesh_equals_one_device(shape):
  mesh = jax.make_mesh(shape, ('data', 'expert'), axis_types=(AxisType.Auto,) * 2)
  module = layer.MoE(num_experts=8, top_k=2, hidden=16, same_start=False)
  x = jax.random.normal(jax.random.key(1), (8, 4, 4, 8))
  params = module.init(jax.random.key(0), x)
  key = jax.random.key(3)

  @functools.partial(jax.value_and_grad, has_aux=True)
  def loss(params, x):
    y, routed = module.apply(params, x, key)
    return (y**2).sum() + 10 * layer.balance_loss([routed.usage], 1.0), y

  want = jax.jit(loss)(params, x)
  with jax.set_mesh(mesh):
    sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P(('data', 'expert'))))
    got = jax.jit(loss)(params, sharded)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert relative(np.asarray(a), np.asarray(b)) < 1e-5


@pytest.mark.slow
def test_balance_per_device_is_the_mean_over_groups():
  module = layer.MoE(num_experts=4, top_k=2, hidden=8, stat_groups=2)
  x = jax.random.normal(jax.random.key(1), (4, 3, 3, 8))
  variables = module.init(jax.random.key(0), x)
  usage = module.apply(variables, x)[1].usage
  one = layer.MoE(num_experts=4, top_k=2, hidden=8)
  halves = [layer.balance_loss([one.apply(variables, h)[1].usage], 0.01) for h in (x[:2], x[2:])]
  np.testing.assert_allclose(layer.balance_loss([usage], 0.01), sum(halves) / 2, rtol=1e-6)


@pytest.mark.slow
def test_usage_of_two_passes_is_that_of_one():
  module = layer.MoE(num_experts=4, top_k=2, hidden=8)
  x = jax.random.normal(jax.random.key(1), (4, 3, 3, 8))
  variables = module.init(jax.random.key(0), x)
  whole, *parts = (module.apply(variables, v)[1].usage for v in (x, x[:1], x[1:]))
  (total,) = layer.add_usage([[p] for p in parts])
  for a, b in zip(total, whole, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_routing_by_hand():
  logits = jnp.log(jnp.asarray([[1.0, 2.0, 6.0], [3.0, 1.0, 1.0]]))
  r = router.route(logits, 2)
  np.testing.assert_array_equal(r.indices, [[2, 1], [0, 1]])
  np.testing.assert_allclose(r.weights, [[0.75, 0.25], [0.75, 0.25]], rtol=1e-6)
  np.testing.assert_allclose(r.importance, [[0, 0.25, 0.75], [0.75, 0.25, 0]], rtol=1e-6)
  np.testing.assert_array_equal(r.load, [[0, 1, 1], [1, 1, 0]])
  np.testing.assert_allclose(router.cv_squared(jnp.asarray([1.0, 3.0])), 2 / 4, rtol=1e-6)


def test_softmax_before_the_top_k_by_hand():
  """Equation 2 of the paper: shares of all experts, so that the chosen ones sum to less than 1."""
  r = router.route(jnp.log(jnp.asarray([[1.0, 2.0, 6.0], [3.0, 1.0, 1.0]])), 2, softmax='before')
  np.testing.assert_array_equal(r.indices, [[2, 1], [0, 1]])
  np.testing.assert_allclose(r.weights, [[6 / 9, 2 / 9], [3 / 5, 1 / 5]], rtol=1e-6)
  np.testing.assert_allclose(r.importance, [[0, 2 / 9, 6 / 9], [3 / 5, 1 / 5, 0]], rtol=1e-6)


@pytest.mark.slow
def test_one_set_of_experts_an_image_by_its_mean():
  module = layer.MoE(
    num_experts=3, top_k=1, hidden=8, same_start=False, level='image', implementation='dense'
  )
  x = jax.random.normal(jax.random.key(1), (2, 2, 3, 4))
  variables = module.init(jax.random.key(0), x)
  y, routed = module.apply(variables, x)
  cells = np.asarray(routed.experts)
  assert cells.shape == (2, 2, 3, 1) and (cells == cells[:, :1, :1]).all()
  gate = router.Router(3, 1)
  want = gate.apply({'params': variables['params']['router']}, x.mean((1, 2)))
  np.testing.assert_array_equal(cells[:, 0, 0], want.indices)
  assert float(routed.usage.load.sum()) == 2  # an image counts once, however many cells it has
  p = variables['params']
  for i, e in enumerate(want.indices[:, 0].tolist()):
    h = jax.nn.gelu(x[i] @ p['experts_w1'][e] + p['experts_b1'][e][None, None], approximate=False)
    np.testing.assert_allclose(
      y[i], h @ p['experts_w2'][e] + p['experts_b2'][e][None, None], atol=1e-6
    )


def test_unit_has_a_finite_gradient_at_zero():
  g = jax.grad(lambda x: (router.unit(x, -1) * jnp.arange(3.0)[None]).sum())(jnp.zeros((2, 3)))
  assert np.isfinite(g).all()


def official_layer(z, prefix, gate):
  """Our parameters of a recorded stand-alone layer."""
  w = {k[len(prefix) + 1 :]: z[k] for k in z.files if k.startswith(prefix + '.')}
  e = w['w_noise'].shape[1]
  stack = lambda k, part: jnp.stack(
    [jnp.asarray(w[f'experts.{i}.pointwise_conv{k}.{part}'].T) for i in range(e)]
  )
  r = {'noise': w['w_noise']}
  if gate == 'linear':
    r['gate'] = w['w_gate']
  else:
    r |= {'projection': w['w_gate.cosine_projector.weight'].T, 'embedding': w['w_gate.sim_matrix']}
    r |= {'projection_bias': w['w_gate.cosine_projector.bias']}
    r |= {'temperature': w['w_gate.temperature']}
  experts = {
    f'experts_{n}{k}': stack(k, p) for k in (1, 2) for n, p in (('w', 'weight'), ('b', 'bias'))
  }
  return {'router': jax.tree.map(jnp.asarray, r), **experts}


OFFICIAL = [('c0', 4, 2, 'cosine'), ('c1', 8, 3, 'cosine'), ('c2', 4, 4, 'cosine'),
            ('c3', 6, 1, 'cosine'), ('c4', 4, 2, 'linear')]  # fmt: skip


@pytest.mark.parametrize('name,e,k,gate', OFFICIAL)
def test_golden_layer(golden, monkeypatch, name, e, k, gate):
  z = np.load(golden / 'ops_A/moe_layer.npz')
  x = jnp.asarray(z[f'{name}.x'])
  params = official_layer(z, f'{name}.w', gate)
  module = layer.MoE(num_experts=e, top_k=k, hidden=4 * x.shape[-1], gate=gate)
  y, (usage, *_) = jax.jit(lambda p, x: module.apply({'params': p}, x))(params, x)
  np.testing.assert_allclose(y, z[f'{name}.eval.y'], atol=1e-5 * np.abs(z[f'{name}.eval.y']).max())
  np.testing.assert_allclose(layer.balance_loss([usage], 0.01), z[f'{name}.eval.loss'], rtol=1e-4)
  np.testing.assert_array_equal(usage.load[0], z[f'{name}.eval.load'])

  monkeypatch.setattr(router, 'draw_noise', lambda *_: jnp.asarray(z[f'{name}.train.noise']))
  cotangent = jnp.asarray(z[f'{name}.train.cotangent'])

  def objective(params, x):
    y, (usage, *_) = module.apply({'params': params}, x, jax.random.key(0))
    return (y * cotangent).sum() + 100 * layer.balance_loss([usage], 0.01), (y, usage)

  run = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))
  (_, (y, usage)), (grads, dx) = run(params, x)
  assert relative(y, z[f'{name}.train.y']) < 1e-5
  np.testing.assert_allclose(layer.balance_loss([usage], 0.01), z[f'{name}.train.loss'], rtol=1e-4)
  np.testing.assert_allclose(usage.load[0], z[f'{name}.train.load'], rtol=1e-4)
  assert relative(dx, z[f'{name}.train.grad_x']) < 1e-4
  if gate == 'cosine':
    want = {k: z[k] for k in z.files if k.startswith(f'{name}.train.grad.')}
    got = official_names(grads, e)
    for key, value in want.items():
      short = key.removeprefix(f'{name}.train.grad.')
      assert np.abs(got[short] - value).max() <= 1e-3 * np.abs(value).max() + 1e-6, short


def official_names(grads, e):
  out = {'w_noise': grads['router']['noise'], 'w_gate.temperature': grads['router']['temperature']}
  out['w_gate.sim_matrix'] = grads['router']['embedding']
  out['w_gate.cosine_projector.weight'] = grads['router']['projection'].T
  out['w_gate.cosine_projector.bias'] = grads['router']['projection_bias']
  for i in range(e):
    for k in (1, 2):
      out[f'experts.{i}.pointwise_conv{k}.weight'] = grads[f'experts_w{k}'][i].T
      out[f'experts.{i}.pointwise_conv{k}.bias'] = grads[f'experts_b{k}'][i]
  return {k: np.asarray(v) for k, v in out.items()}
