"""RingMoE's layer against a loop over tokens, all experts on one device, and recorded values."""

import fractions
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_expert_parallel import assert_close, emulated

from sm3det_jax import sharding
from sm3det_jax.moe import dispatch, expert_parallel, hierarchical
from sm3det_jax.moe.experts import FFN

M, S, E, C, D, N = 3, 4, 4, 6, 8, 64
SHAPES = {'w1': (C, D), 'b1': (D,), 'w2': (D, C), 'b2': (C,)}
RELEASED = dict(combine='renormalised', balance='released', gelu='tanh')
VARIANTS = {
  'paper': {},
  'paper, top 2': dict(top_k=2),
  'paper with a capacity': dict(capacity_factor=1.2),
  'released': RELEASED | dict(capacity_factor=0.9, top_k=2, groups=2),
}


def case(modality='even'):
  """(layer, x, modality); 'even': a third of 60 tokens each, mixed; else any mixture of 64."""
  keys = iter(jax.random.split(jax.random.key(3), 20))
  normal = lambda *shape: jax.random.normal(next(keys), shape) * 0.6
  layer = {}
  for name, lead in (('spec', (M, S)), ('coll', (E,)), ('shared', ())):
    shapes = SHAPES | ({'router': (C,)} if lead else {})
    layer |= {f'{name}.{k}': normal(*lead, *shape) for k, shape in shapes.items()}
  if modality == 'even':
    kinds = jax.random.permutation(next(keys), jnp.arange(60) % M)
  else:
    kinds = jax.random.choice(next(keys), M, (N,), p=jnp.asarray([0.6, 0.3, 0.1]))
  return layer, normal(len(kinds), C) * 2, kinds


def ffn(layer, name, expert, x, gelu):
  w1, b1, w2, b2 = (layer[f'{name}.{k}'][expert] for k in ('w1', 'b1', 'w2', 'b2'))
  h = x @ w1 + b1
  if gelu == 'erf':
    h = h * 0.5 * (1 + np.vectorize(math.erf)(h / 2**0.5))
  else:
    h = 0.5 * h * (1 + np.tanh((2 / np.pi) ** 0.5 * (h + 0.044715 * h**3)))
  return h @ w2 + b2


def queue_up(p, top_k, capacity, renormalised):
  """[K] lists of (expert, kept) of tokens with probabilities p [t, n], and of (f, P) [n]."""
  t, n = p.shape
  out, full, choices, shares = np.zeros((t, n), bool), np.zeros(n, int), [], []
  for _ in range(top_k):
    waiting, chosen, mean = full.copy(), [], np.zeros(n)
    for i in range(t):
      left = np.where(out[i], 0, p[i])
      e = int(left.argmax())
      mean += left / left.sum() / t
      kept = waiting[e] < capacity
      waiting[e] += 1
      full[e] += kept
      out[i, e] |= kept or not renormalised
      chosen.append((e, kept))
    shares.append((np.bincount([e for e, _ in chosen], minlength=n) / t, mean))
    choices.append(chosen)
  return choices, shares


def by_token(
  layer, x, modality, top_k=1, combine='probability', capacity_factor=None, groups=1,
  balance='paper', gelu='erf',
):  # fmt: skip
  """The definition in float64, one token and one queue at a time: (y, balance, {group: ..})."""
  layer = {k: np.asarray(v, np.float64) for k, v in layer.items()}
  x, modality, losses = np.asarray(x, np.float64), np.asarray(modality), {'spec': [], 'coll': []}
  y = ffn(layer, 'shared', (), x, gelu)
  routing = {k: (np.zeros((len(x), top_k), int), np.zeros((len(x), top_k))) for k in losses}
  for name, m in [('coll', ()), *(('spec', (m,)) for m in range(M))]:
    tokens = np.flatnonzero(modality == m) if m else np.arange(len(x))
    router = layer[f'{name}.router'][m]
    n, by_run = len(router), []
    capacity = math.inf
    if capacity_factor is not None:
      share = fractions.Fraction(str(capacity_factor)) * top_k * len(tokens) / (groups * n)
      capacity = math.ceil(share)
    for run in np.split(tokens, groups):
      p = np.exp(x[run] @ router.T)
      p /= p.sum(1, keepdims=True)
      choices, shares = queue_up(p, top_k, capacity, combine == 'renormalised')
      if balance == 'paper':
        by_run.append(n * (sum(f for f, _ in shares) * shares[0][1]).sum())
      else:
        by_run.append(sum(64 / n * (f * q).sum() for f, q in shares))
      for i, t in enumerate(run):
        weights = np.array([p[i, e] * kept for e, kept in (c[i] for c in choices)])
        if combine == 'renormalised':
          weights /= weights.sum() + 1e-9
        for j, (e, _) in enumerate(c[i] for c in choices):
          y[t] += weights[j] * ffn(layer, name, (*m, e), x[t], gelu)
          routing[name][0][t, j], routing[name][1][t, j] = e, weights[j]
    losses[name].append(np.mean(by_run))
  specialised = np.sum(losses['spec']) if balance == 'paper' else np.mean(losses['spec'])
  return y, losses['coll'][0] + specialised, routing


@pytest.mark.parametrize('variant', VARIANTS)
def test_the_layer_follows_its_definition(variant):
  options = VARIANTS[variant]
  args = case('even' if options.get('groups') else 'skewed')
  run = lambda *a: hierarchical.rmoe(*a, **options, implementation='dense')
  y, balance, routing = jax.jit(run)(*args)
  want, loss, choices = by_token(*args, **options)
  for name, (indices, weights) in choices.items():
    np.testing.assert_array_equal(routing[name].indices, indices)
    np.testing.assert_allclose(routing[name].weights, weights, atol=2e-6)
    assert 'capacity_factor' not in options or (weights == 0).any()  # something is dropped
  np.testing.assert_allclose(y, want, atol=2e-6 * np.abs(want).max())
  np.testing.assert_allclose(balance, loss, rtol=2e-6)


def compiled(implementation='blocked', **options):
  """Of a layer and tokens: gradients of all arrays and the tokens, and (y, balance, routing)."""
  ct = jax.random.normal(jax.random.key(9), (N, C))

  def objective(layer, x, modality):
    y, balance, routing = hierarchical.rmoe(
      layer, x, modality, **options, implementation=implementation
    )
    return (y * ct).sum() + balance, (y, balance, routing)

  return jax.jit(jax.grad(objective, (0, 1), has_aux=True))


@functools.cache
def reference(variant):
  return compiled('dense', **VARIANTS[variant])(*case('skewed'))


def check(variant, data=1, expert=1, model=1):
  mesh = sharding.make_mesh(dict(data=data, expert=expert, model=model))
  layer, x, modality = case('skewed')
  with jax.set_mesh(mesh):
    layer = jax.device_put(layer, sharding.tree_sharding(mesh, layer))
    x, modality = jax.device_put((x, modality), sharding.batch_sharding(mesh))
    assert_close(compiled(**VARIANTS[variant])(layer, x, modality), reference(variant))
  return layer


def test_one_plan_equals_all_experts_in_outputs_and_every_gradient():
  check('paper, top 2')


def test_a_mesh_of_three_axes_gives_the_same():
  layer = check('paper, top 2', 2, 2, 2)
  held = {k: v.sharding.shard_shape(v.shape) for k, v in layer.items()}
  assert held['spec.w1'] == (M, S // 2, C, D // 2) and held['spec.b2'] == (M, S // 2, C)
  assert held['coll.b1'] == (E // 2, D // 2) and held['coll.w2'] == (E // 2, D // 2, C)
  assert held['shared.w1'] == (C, D // 2) and held['shared.b2'] == (C,)
  assert held['spec.router'] == (M, S, C)


MESHES = [(8, 1, 1), (4, 2, 1), (2, 4, 1), (1, 4, 2), (4, 1, 2)]


@pytest.mark.slow
@pytest.mark.parametrize('mesh', MESHES)
def test_every_mesh_gives_the_same(mesh):
  check('paper, top 2', *mesh)


@pytest.mark.slow
@pytest.mark.parametrize('mesh', [(2, 4, 1), (2, 2, 2)])
def test_the_capacity_is_of_all_devices_together(mesh):
  check('released', *mesh)


@pytest.mark.slow
def test_ragged_exchange_of_two_stacks(monkeypatch):
  monkeypatch.setattr(expert_parallel, '_has_ragged', lambda mesh: True)
  monkeypatch.setattr(jax.lax, 'ragged_all_to_all', emulated)
  monkeypatch.setattr(expert_parallel, 'transport', lambda *_: 'ragged')
  check('paper, top 2', 2, 2, 2)


def test_stacks_of_experts_are_one_stack_to_the_bit():
  """In one plan; choices of no expert, several a token, do not count."""
  layer, x, _ = case('skewed')
  stacks = [
    tuple(layer[f'{name}.{k}'].reshape(-1, *shape) for k, shape in SHAPES.items())
    for name in ('spec', 'coll')
  ]
  joined = [tuple(jnp.concatenate(a) for a in zip(*stacks, strict=True))]
  r = jax.random.split(jax.random.key(0), 3)
  indices = jax.lax.top_k(jax.random.normal(r[0], (N, M * S + E)), 3)[1].astype(jnp.int32)
  indices = jnp.where(jax.random.bernoulli(r[1], 0.3, indices.shape), M * S + E, indices)
  weights = jax.random.uniform(r[2], indices.shape)

  @jax.jit
  def run(stacks, x, weights):
    f = lambda s, x, w: dispatch.run(FFN, x, indices, w, s)
    y, pull = jax.vjp(f, stacks, x, weights)
    return y, pull(jnp.cos(y))

  y, (dstacks, *d) = run(stacks, x, weights)
  want, (djoined, *dwant) = run(joined, x, weights)
  got = jax.tree.leaves((y, d, [jnp.concatenate(a) for a in zip(*dstacks, strict=True)]))
  for a, b in zip(got, jax.tree.leaves((want, dwant, djoined)), strict=True):
    np.testing.assert_array_equal(a, b)


def test_each_group_is_a_part_of_the_sum_and_may_be_absent():
  layer, x, modality = case('skewed')
  run = jax.jit(functools.partial(hierarchical.rmoe, implementation='dense'))
  without = lambda *names: {k: v for k, v in layer.items() if k.partition('.')[0] not in names}
  whole, balance, _ = run(layer, x, modality)
  spec, of_spec, routing = run(without('coll', 'shared'), x, modality)
  rest, of_coll, _ = run(without('spec'), x, modality)
  shared, none, nowhere = run(without('spec', 'coll'), x, modality)
  assert set(routing) == {'spec'} and not nowhere and none == 0
  np.testing.assert_allclose(spec + rest, whole, atol=1e-5)
  np.testing.assert_allclose(of_spec + of_coll, balance, rtol=1e-6)
  w1, b1, w2, b2 = (layer[f'shared.{k}'] for k in SHAPES)
  want = jax.nn.gelu(x @ w1 + b1[None], approximate=False) @ w2 + b2[None]
  np.testing.assert_allclose(shared, want, atol=1e-5)


def test_a_modality_without_tokens_costs_nothing_and_learns_nothing():
  layer, x, modality = case('skewed')
  f = compiled('dense')
  (grads, _), (_, balance, _) = f(layer, x, jnp.where(modality == 1, 0, modality))
  assert not any(np.asarray(grads[f'spec.{k}'][1]).any() for k in (*SHAPES, 'router'))
  assert all(np.isfinite(g).all() for g in grads.values()) and np.isfinite(balance)


def test_bad_options_and_meshes_are_one_line():
  layer, x, modality = case()
  refused = lambda match: pytest.raises(ValueError, match=match)
  for options, message in (
    (dict(combine='sum'), "combine='sum'.*probability"),
    (dict(balance='none'), "balance='none'.*released"),
    (dict(gelu='relu'), "gelu='relu'.*tanh"),
    (dict(top_k=5), 'top_k=5 must be 1 to 4, the experts of spec.router'),
    (dict(capacity_factor=0), 'capacity_factor=0: expected a number above 0'),
    (dict(implementation='fast'), "implementation='fast'.*blocked"),
  ):
    with refused(message):
      jax.eval_shape(functools.partial(hierarchical.rmoe, **options), layer, x, modality)
  with refused('a layer without experts'):
    hierarchical.rmoe({}, x, modality)
  for sizes, message in (
    (dict(data=1, expert=8), "12 experts do not divide over mesh axis 'expert' of 8"),
    (dict(data=1, expert=1, model=3), "8 hidden channels do not divide .* 'model' of 3"),
  ):
    with jax.set_mesh(sharding.make_mesh(sizes)), refused(message):
      jax.eval_shape(hierarchical.rmoe, layer, x, modality)


def test_the_module_holds_the_arrays_by_their_names():
  module = hierarchical.RMoE(
    hidden=D, modalities=M, specialised=S, collaborative=E, implementation='dense', top_k=2
  )
  x, modality = jax.random.normal(jax.random.key(1), (3, 2, 2, C)), jnp.asarray([2, 0, 1])

  @jax.jit
  def run(key):
    params = module.init(key, x, modality)['params']
    options = dict(top_k=2, implementation='dense')
    want = hierarchical.rmoe(params, x.reshape(-1, C), jnp.repeat(modality, 4), **options)
    return params, module.apply({'params': params}, x, modality), want

  params, (y, balance, routing), want = run(jax.random.key(0))
  assert {k: v.shape for k, v in params.items()} == {k: v.shape for k, v in case()[0].items()}
  assert all(not np.asarray(v).any() for k, v in params.items() if k[-2:] in ('b1', 'b2'))
  assert all(0 < np.abs(params[k]).max() <= C**-0.5 for k in ('spec.router', 'coll.router'))
  assert 0.01 < np.std(params['spec.w1']) < 0.03
  np.testing.assert_array_equal(y.reshape(-1, C), want[0])
  assert balance == want[1] and routing['coll'].weights.shape == (3, 2, 2, 2)
  small = module.clone(specialised=0, shared=False)
  params = jax.eval_shape(small.init, jax.random.key(0), x, modality)['params']
  assert {k.partition('.')[0] for k in params} == {'coll'}


GOLDEN = {
  'code_cap_groups2': RELEASED | dict(capacity_factor=1.2, groups=2),
  'code_cap_top2': RELEASED | dict(capacity_factor=1.2, top_k=2),
  'gate_dropless_top2': dict(top_k=2),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', GOLDEN)
def test_golden_layer(golden, name):
  folder = golden / 'ringmoe/case2_rmoe_layer'
  z, grads = (np.load(folder / f'rmoe_layer{end}.npz') for end in ('', '_grads'))
  alpha = jnp.float32(json.loads(str(z['meta_json']))['alpha'])
  layer = {k[2:]: jnp.asarray(z[k]) for k in z.files if k.startswith('w.')}
  x, modality = jnp.asarray(z['x']), jnp.asarray(z['modality'])

  def objective(layer, x):
    y, balance, routing = hierarchical.rmoe(layer, x, modality, **GOLDEN[name])
    return (y * jnp.asarray(z['cotangent'])).sum() + alpha * balance, (y, alpha * balance, routing)

  (dlayer, dx), (y, balance, routing) = jax.jit(jax.grad(objective, (0, 1), has_aux=True))(layer, x)
  np.testing.assert_allclose(y, z[f'{name}.y'], atol=3e-6 * np.abs(z[f'{name}.y']).max())
  np.testing.assert_allclose(balance, z[f'{name}.aux_total'], rtol=3e-6)
  np.testing.assert_array_equal(routing['coll'].indices.T, z[f'{name}.coll.expert'])
  np.testing.assert_array_equal(routing['spec'].indices[modality == 1].T, z[f'{name}.spec1.expert'])
  for key, got in (dlayer | {'x': dx}).items():
    want = grads[f'{name}.d_{key}']
    # p / (p + 1e-9) is 1 but for what rounding leaves
    floor = 1e-5 if name.startswith('code') and key.endswith('router') else 2e-7
    np.testing.assert_allclose(got, want, atol=3e-5 * np.abs(want).max() + floor, err_msg=key)
