"""Experts over the mesh, by every transport, against all experts on one device."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sm3det_jax import sharding
from sm3det_jax.moe import dispatch, expert_parallel

GRADIENTS = (0, 2, 3, 4, 5, 6)
MESHES = [(1, 8), (2, 4), (4, 2), (8, 1), (2, 2, 2)]


def make_mesh(shape):
  return sharding.make_mesh(dict(zip(('data', 'expert', 'model'), shape, strict=False)))


def case(kind, n=96, c=8, d=12, e=8, k=2):
  """Arguments of `expert_ffn`; kind: 'even', 'starved' (nothing on expert 1), 'one' (all on 2)."""
  r = jax.random.split(jax.random.key(0), 7)
  logits = jax.random.normal(r[0], (n, e))
  if kind == 'starved':
    logits = logits.at[:, 1].set(-1e3)
  if kind == 'one':
    logits = logits.at[:, 2].set(1e3)
  top, indices = lax.top_k(logits, k)
  normal = lambda key, *shape: jax.random.normal(key, shape) * 0.3
  params = normal(r[1], e, c, d), normal(r[2], e, d), normal(r[3], e, d, c), normal(r[4], e, c)
  return jax.random.normal(r[5], (n, c)), indices, jax.nn.softmax(jnp.minimum(top, 3)), *params


def compiled(f, x):
  """(gradients of all float arguments, output) of a function of `expert_ffn`'s arguments."""
  ct = jax.random.normal(jax.random.key(9), x.shape, x.dtype)

  def objective(*args):
    y = f(*args)
    return (y * ct).sum(), y

  return jax.jit(jax.grad(objective, GRADIENTS, has_aux=True))


def assert_close(got, want, tolerance=1e-5):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    error = np.abs(np.asarray(a) - np.asarray(b)).max() / (np.abs(b).max() + 1e-9)
    assert error < tolerance, error


@functools.cache
def reference(n, e, k):
  dense = functools.partial(dispatch.expert_ffn, implementation='dense')
  return compiled(dense, case('even', n, e=e, k=k)[0])


def check(f, kinds=('even', 'starved', 'one'), n=96, e=8, k=2):
  """`f` (compiled once) gives the reference's outputs and gradients for each kind of routing."""
  f = compiled(f, case('even', n, e=e, k=k)[0])
  for kind in kinds:
    args = case(kind, n, e=e, k=k)
    assert_close(f(*args), reference(n, e, k)(*args))


def on(shape, **options):
  return functools.partial(expert_parallel.expert_ffn, mesh=make_mesh(shape), **options)


def test_gather_equals_all_experts_on_one_device():
  check(on((2, 4)))


@pytest.mark.slow
@pytest.mark.parametrize('k', [1, 2, 3])
@pytest.mark.parametrize('e', [8, 16])
@pytest.mark.parametrize('shape', MESHES)
def test_every_mesh_equals_all_experts_on_one_device(shape, e, k):
  check(on(shape), e=e, k=k)


def emulated(operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name):
  """`lax.ragged_all_to_all` out of all-gathers, for a platform that lacks it."""
  gather = lambda a: lax.all_gather(a, axis_name)
  operand, at, to = gather(operand), gather(input_offsets), gather(output_offsets)
  me, sizes = lax.axis_index(axis_name), gather(send_sizes)
  number = jnp.arange(operand.shape[1])
  for i in range(len(operand)):
    target = jnp.where(number < sizes[i, me], to[i, me] + number, len(output))
    output = output.at[target].set(operand[i][at[i, me] + number], mode='drop')
  return jnp.where((recv_sizes == sizes[:, me]).all(), output, jnp.nan)


@pytest.fixture
def tpu(monkeypatch):
  """Chooses as on a TPU, with its collective emulated."""
  monkeypatch.setattr(expert_parallel, '_has_ragged', lambda mesh: True)
  monkeypatch.setattr(lax, 'ragged_all_to_all', emulated)


def test_ragged_equals_all_experts_on_one_device(tpu):
  check(on((2, 4)))


@pytest.mark.slow
@pytest.mark.parametrize('shape, e, k', [((1, 8), 16, 3), ((4, 2), 8, 1), ((1, 8), 8, 3)])
def test_ragged_on_other_meshes(tpu, shape, e, k):
  check(on(shape), e=e, k=k)


def test_ample_slots_drop_nothing():
  f = on((2, 4), capacity_factor=4.0, return_stats=True)  # 8 experts / top 2
  check(lambda *a: f(*a)[0])


@pytest.mark.parametrize('shape', [(2, 4), (1, 1)])
def test_scarce_slots_drop_the_last_tokens_and_say_how_many(shape):
  x, indices, weights, *params = case('one', 96)
  f = jax.jit(on(shape, capacity_factor=1.0, return_stats=True))
  y, stats = f(x, indices, weights, *params)
  devices = shape[0] * shape[1]
  t = 96 // devices
  slots = t * 2 // 8
  kept = np.zeros(indices.shape, bool)
  for device in np.split(np.arange(96), devices):
    count = np.zeros(8, int)
    for n in device:
      for j, e in enumerate(np.asarray(indices[n])):
        kept[n, j], count[e] = count[e] < slots, count[e] + 1
  want = dispatch.expert_ffn(
    x, indices, weights * kept.astype(np.float32), *params, implementation='dense'
  )
  assert_close(y, want)
  np.testing.assert_allclose(stats['dropped_of_token'], 1 - kept.mean(1))
  np.testing.assert_allclose(stats['dropped'], 1 - kept.mean(), rtol=1e-6)
  assert stats['dropped'] > 0.3 and stats['load'][2] == 96


def test_groups_of_experts_and_tokens_that_do_not_divide():
  """Two modalities, each with experts of its own: 4 and 4 on 4 devices, 90 tokens on 8."""
  x, _, weights, *params = case('even', 90)
  own = lax.top_k(jax.random.normal(jax.random.key(5), (90, 4)), 2)[1]
  indices = own + 4 * (jnp.arange(90) % 3 == 0)[:, None].astype(jnp.int32)
  args = x, indices, weights, *params
  f = jax.jit(on((2, 4), return_stats=True))
  y, stats = f(*args)
  assert_close(y, dispatch.expert_ffn(*args, implementation='dense'))
  assert int(stats['load'][4:].sum()) == 60 and float(stats['dropped']) == 0


def test_transport_is_the_one_that_sends_less():
  choose = expert_parallel.transport
  assert choose(1, 2, 4, True) == 'none'
  assert choose(4, 2, 4, False) == 'gather'
  assert choose(4, 2, 4, True) == 'ragged' and choose(2, 2, 4, True) == 'gather'
  assert choose(2, 2, 2, True) == 'ragged'  # bfloat16, whose sums travel as float32
  assert choose(2, 2, 4, True, capacity_factor=1.25) == 'slots'


@pytest.mark.parametrize(
  'platform, kind, devices, has',
  [
    ('cpu', 'cpu', 8, False),
    ('gpu', 'NVIDIA H100', 8, False),
    ('tpu', 'TPU v5 lite', 16, True),
    ('tpu', 'TPU v5 lite', 32, False),
    ('tpu', 'TPU v6 lite', 256, True),
  ],
)
def test_who_has_a_ragged_exchange(platform, kind, devices, has):
  device = types.SimpleNamespace(platform=platform, device_kind=kind)
  mesh = types.SimpleNamespace(abstract_device=device, size=devices)
  assert expert_parallel._has_ragged(mesh) == has


@pytest.mark.slow
def test_single_layers_stay_whole_on_a_mesh_that_cuts_hidden_channels():
  x, indices, weights, w, b, *_ = case('even')
  f = functools.partial(expert_parallel.expert_linear, mesh=make_mesh((2, 2, 2)))
  grad = lambda f: jax.jit(jax.grad(lambda *a: jnp.sin(f(*a)).sum(), (0, 2, 3, 4)))
  args = x, indices, weights, w, b
  assert_close(grad(f)(*args), grad(dispatch.expert_linear)(*args))


@pytest.mark.slow
def test_slots_of_a_share_of_the_hidden_channels():
  f = on((2, 2, 2), capacity_factor=4.0, return_stats=True)
  check(lambda *a: f(*a)[0])


def test_experts_must_divide():
  with pytest.raises(ValueError, match="6 experts do not divide over mesh axis 'expert' of 4"):
    on((2, 4))(*case('even', e=6))
