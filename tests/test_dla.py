"""DLA against the official hook's trace, by hand, and with terms that are missing or bad."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sm3det_jax.optim import dla

TERMS = {'sar/cls': 'sar/bbox_head', 'rgb/rpn_cls': 'rgb/rpn_head', 'rgb/cls': 'rgb/roi_head'}
ORDINARY = {'sar/cls': 1.0, 'rgb/rpn_cls': 0.5, 'rgb/cls': 2.0}


def _official_group(name):
  task, rest = name.split('_', 1)
  if task == 'sar':
    return 'sar_bbox_head'
  return f'{task}_rpn_head' if 'rpn' in rest else f'{task}_roi_head'


def _options(key):
  """Options of a recorded policy, `var.<shared>.<head>` or `var.T<T>_b<b>`."""
  policy = key.removeprefix('var.').removesuffix('.lr_multiplier')
  if not key.startswith('var.'):
    return {}
  if policy.startswith('T'):
    temperature, bias = policy[1:].split('_b')
    return dict(temperature=float(temperature), bias=float(bias), decay=0.005)
  shared, head = policy.lower().split('.')
  return dict(shared_policy=shared, head_policy=head)


def _named(names, values):
  return dict(zip(names, values, strict=True))


def _traces(golden):
  """Every recorded policy as ours gives it, compiled once: {key: (got, wanted, history)}."""
  z = np.load(golden / 'dla_A/dla_trace.npz')
  names, groups = [str(n) for n in z['loss_names']], [str(g) for g in z['groups']]
  terms = {name: _official_group(name) for name in names}
  keys = [k for k in z.files if k.endswith('.lr_multiplier')]

  @jax.jit
  def run(losses):
    def step(states, row):
      out = {}
      for key in keys:
        m, states[key] = dla.step(states[key], _named(names, row), terms, **_options(key))
        out[key] = jnp.stack([m.get(g, m['shared']) for g in groups])
      return states, (out, jnp.stack([states['main.lr_multiplier'].history[n] for n in names]))

    return jax.lax.scan(step, {key: dla.init(names) for key in keys}, losses)[1]

  got, history = run(jnp.asarray(z['losses'], float))
  return z, got, history


@pytest.mark.parametrize(
  'x64, tolerance', [pytest.param(False, 1e-5, marks=pytest.mark.slow), (True, 1e-7)]
)
def test_every_recorded_policy(golden, x64, tolerance):
  with jax.enable_x64(x64):
    z, got, history = _traces(golden)
    assert history.dtype == (jnp.float64 if x64 else jnp.float32)
    step = np.arange(len(z['losses']))[:, None]
    warmup = np.minimum(1 / 3 + (1 - 1 / 3) * step / 500, 1)
    decay = 1e-4 * 0.1 ** ((step >= 600).astype(float) + (step >= 700))
    main = np.asarray(got['main.lr_multiplier'])
    pairs = {k: (v, z[k]) for k, v in got.items() if k != 'main_intended_warmup.lr_multiplier'}
    pairs['warmup'] = (main * warmup, z['main_intended_warmup.lr_multiplier'])
    pairs['stepdecay'] = (main * decay, z['main_stepdecay.lr'])
    pairs['history'] = (history, z['main.ema'])
  assert len(pairs) == 25
  for key, (ours, want) in pairs.items():
    error = np.max(np.abs(np.asarray(ours, np.float64) - want) / np.abs(want))
    assert error < tolerance, (key, error)


def test_paper_variant_by_hand():
  """Two tasks, two steps, every number from equations 3 to 10 in plain NumPy."""
  terms = {'sar/cls': 'sar/bbox_head', 'rgb/rpn_cls': 'rgb/rpn_head', 'rgb/cls': 'rgb/roi_head'}
  state = dla.init(terms)
  step = functools.partial(dla.step, term_to_group=terms, decay=0.1, variant='paper')
  first, state = step(state, {'sar/cls': 1.0, 'rgb/rpn_cls': 0.5, 'rgb/cls': 1.5})
  np.testing.assert_allclose(first['shared'], 2 / (1 + np.exp(-(1 - 0.4) * 3)), rtol=1e-6)
  np.testing.assert_allclose(
    [first[g] for g in terms.values()], 1, rtol=1e-6
  )  # no delay, no change

  second, _ = step(state, {'sar/cls': 2.0, 'rgb/rpn_cls': 0.5, 'rgb/cls': 0.5})
  cur = np.array([2.0, 1.0])  # a task's loss is the sum of its terms
  his = 0.1 * cur + 0.9 * np.array([1.0, 2.0])  # 1.1, 1.9: with the current loss in it
  w = his / cur
  lambdas = 2 * np.exp(w / 3) / np.exp(w / 3).sum()
  p, q = (np.exp(x) / np.exp(x).sum() for x in (cur, his))
  consistency = 1 - (p * np.log(p / q)).sum()
  gamma = 2 / (1 + np.exp(-(consistency - 0.4) * 3))
  np.testing.assert_allclose(second['sar/bbox_head'], lambdas[0], rtol=1e-6)
  np.testing.assert_allclose(second['rgb/rpn_head'], lambdas[1], rtol=1e-6)
  np.testing.assert_allclose(second['rgb/roi_head'], lambdas[1], rtol=1e-6)
  np.testing.assert_allclose(second['shared'], gamma, rtol=1e-6)


def _run(rows, **options):
  state, out = dla.init(TERMS), []
  step = jax.jit(lambda s, l: dla.step(s, l, TERMS, warmup_steps=2, decay=0.1, **options))
  for row in rows:
    multipliers, state = step(state, row)
    out.append({k: float(v) for k, v in multipliers.items()})
  return out


def _rows(bad_step, **changes):
  rng = np.random.default_rng(0)
  rows = [{k: np.float32(v * rng.uniform(0.5, 1.5)) for k, v in ORDINARY.items()} for _ in range(7)]
  rows[bad_step] = rows[bad_step] | changes
  return [{k: v for k, v in row.items() if v is not None} for row in rows]


@pytest.mark.parametrize('options', [{}, dict(variant='paper'), dict(shared_policy='avg')])
@pytest.mark.parametrize('bad_step', [0, 4])
def test_bad_term_is_as_if_it_had_never_been(options, bad_step):
  absent = _run(_rows(bad_step, **{'rgb/rpn_cls': None}), **options)
  for value in (0.0, -1.0, np.nan, np.inf, -np.inf):
    bad = _run(_rows(bad_step, **{'rgb/rpn_cls': np.float32(value)}), **options)
    assert bad == absent, value
  assert all(np.isfinite(v) for row in absent for v in row.values())
  assert (absent[4]['rgb/rpn_head'] == 1) == (bad_step == 4)  # a group with no term left


def test_a_model_without_the_term_gives_the_same_others():
  """At the bad step the others are those of a model that has no such term at all."""
  rows = _rows(4, **{'rgb/rpn_cls': np.float32(0)})
  others = {k: v for k, v in TERMS.items() if k != 'rgb/rpn_cls'}
  state = dla.init(others)
  for row in rows[:5]:
    without, state = dla.step(state, row, others, warmup_steps=2, decay=0.1)
  got = _run(rows)[4]
  np.testing.assert_allclose([got[k] for k in without], list(without.values()), rtol=1e-6)


def test_history_starts_at_first_valid_value_and_all_bad_steps_are_harmless():
  state = dla.init(TERMS)
  bad = dict.fromkeys(TERMS, np.float32(np.nan))
  multipliers, state = dla.step(state, bad, TERMS, warmup_steps=0)
  assert all(float(m) == 1 for m in multipliers.values())
  assert all(float(h) == 0 for h in state.history.values())
  _, state = dla.step(state, ORDINARY, TERMS)
  assert {k: float(v) for k, v in state.history.items()} == ORDINARY
  assert int(state.count) == 2


@pytest.mark.parametrize('head_policy', ['normal', 'reverse'])
def test_tiny_term(head_policy):
  """history / current overflows without a bound; with one, nobody starves."""
  state = dla.State(jnp.asarray(600, jnp.int32), {k: jnp.asarray(1e4) for k in TERMS})
  tiny = dict(ORDINARY) | {'sar/cls': 1.2e-38}
  free, _ = dla.step(state, tiny, TERMS, head_policy=head_policy)
  assert all(np.isfinite(float(v)) for v in free.values())
  if head_policy == 'normal':
    state = state._replace(history={k: jnp.asarray(v) for k, v in ORDINARY.items()})
    free, _ = dla.step(state, tiny, TERMS)
    bound, _ = dla.step(state, tiny, TERMS, max_ratio=10.0)
    assert float(free['rgb/roi_head']) < 1e-6 < 0.1 < float(bound['rgb/roi_head'])


def test_bad_options():
  state = dla.init(TERMS)
  with pytest.raises(ValueError, match="dla.variant='papers': expected one of released, paper"):
    dla.step(state, ORDINARY, TERMS, variant='papers')
  with pytest.raises(ValueError, match='dla.shared_policy'):
    dla.step(state, ORDINARY, TERMS, shared_policy='median')
  with pytest.raises(ValueError, match=r"\['rgb/cls'\] have no group"):
    dla.step(state, ORDINARY, {k: v for k, v in TERMS.items() if k != 'rgb/cls'})
  with pytest.raises(ValueError, match="named 'shared'"):
    dla.step(state, ORDINARY, TERMS | {'rgb/cls': 'shared'})


def _groups(params):
  return {'neck': 'shared', 'head': 'sar/bbox_head'} if 'head' in params else {'x': 'nobody'}


def test_transform_scales_updates_and_keeps_its_types():
  params = {'neck': jnp.ones(3), 'head': jnp.ones((2, 2), jnp.bfloat16)}
  tx = dla.scale_by_dla(TERMS, _groups, warmup_steps=1)
  state = tx.init(params)
  update = jax.jit(lambda u, s, l: tx.update(u, s, losses=l))
  same, state1 = update(params, state, ORDINARY)  # warm-up
  scaled, state2 = update(params, state1, {k: 2 * v for k, v in ORDINARY.items()})
  want, _ = dla.step(state1.dla, {k: 2 * v for k, v in ORDINARY.items()}, TERMS, warmup_steps=1)
  np.testing.assert_array_equal(same['neck'], 1)
  np.testing.assert_allclose(scaled['neck'], want['shared'], rtol=1e-6)
  np.testing.assert_allclose(
    np.asarray(scaled['head'], np.float32), float(want['sar/bbox_head']), rtol=4e-3
  )
  np.testing.assert_allclose(state2.multipliers['shared'], want['shared'], rtol=1e-6)
  types = [jax.tree.map(jax.typeof, s) for s in (state, state1, state2)]
  assert types[0] == types[1] == types[2]
  assert scaled['head'].dtype == jnp.bfloat16
  with pytest.raises(ValueError, match=r"\['nobody'\] have no loss term"):
    tx.init({'x': jnp.ones(1)})


def test_weight_decay_scales_too():
  """Last in the chain, so that AdamW's decoupled decay follows the multiplier, as with the hook."""
  params = {'neck': jnp.ones(3), 'head': jnp.ones(2)}
  tx = optax.chain(optax.add_decayed_weights(0.5), dla.scale_by_dla(TERMS, _groups, warmup_steps=0))
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(zeros, tx.init(params), params, losses=ORDINARY)
  np.testing.assert_allclose(updates['neck'], 0.5 * 2 / (1 + np.exp(-1.8)), rtol=1e-6)
  np.testing.assert_allclose(updates['head'], 0.5, rtol=1e-6)
