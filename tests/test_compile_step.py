"""What `sm3det compile` reads from compiled programs; the TPU compiler too where it is there."""

import functools
import importlib.util
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from tiny import batch_of, tiny_config

from sm3det_jax import cli, sharding
from sm3det_jax import config as config_lib
from sm3det_jax.analysis import compile_step
from sm3det_jax.analysis import hlo as hlo_text
from sm3det_jax.moe import expert_parallel

NEEDS_LIBTPU = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason='libtpu, the TPU compiler, is not installed'
)


def test_the_collectives_of_a_real_program():
  mesh = sharding.make_mesh({'data': 2, 'expert': 4})

  def body(x):  # [64, 3], each device its [8, 3]
    x = jax.lax.psum(x, ('data', 'expert'))
    x = jax.lax.all_gather(x, 'expert', tiled=True)  # [32, 3]
    x = jax.lax.psum_scatter(x, 'expert', tiled=True)  # [8, 3]
    x = jax.lax.ppermute(x, 'data', [(0, 1), (1, 0)])
    return jax.lax.all_to_all(x, 'expert', 0, 0, tiled=True)

  both = P(('data', 'expert'))
  step = jax.shard_map(body, mesh=mesh, in_specs=both, out_specs=both)
  hlo = jax.jit(step).lower(jnp.zeros((64, 3))).compile().as_text()
  found = {
    c['op']: (c['devices'], c['count'], c['bytes'], c['sent']) for c in hlo_text.collectives(hlo)
  }
  assert found == {
    'all-reduce': (8, 1, 96, 2 * 96 * 7 / 8),
    'all-gather': (4, 1, 384, 384 * 3 / 4),
    'reduce-scatter': (4, 1, 96, 96 * 3),
    'collective-permute': (2, 1, 96, 96),
    'all-to-all': (4, 1, 96, 96 * 3 / 4),
  }


@pytest.mark.parametrize(
  'groups, devices',
  [
    ("mesh['a'=8,'b'=4] {'a'}", 8),
    ("mesh['a'=8,'b'=4] {'a','b'}", 32),
    ("mesh['a'=8,'b'=4] {'a':(2)4,'b'}", 16),
    ('[2,16]<=[32]', 16),
    ('[2,16]<=[16,2]T(1,0)', 16),
    ('{{0,1,2},{3,4,5}}', 3),
    ('{}', 64),
  ],
)
def test_every_way_to_write_groups(groups, devices):
  line = (
    f'  %x = (bf16[4,2]{{1,0}}, f32[]) all-reduce(%a, %b), replica_groups={groups}, to_apply=%s'
  )
  (found,) = hlo_text.collectives(f'HloModule m, num_partitions=64\n{line}')
  assert (found['devices'], found['bytes']) == (devices, 20)


def test_an_asynchronous_gather_counts_its_result_alone():
  line = (
    '%g = (f32[2,3], f32[8,3]) all-gather-start(%x), replica_groups={{0,1,2,3}}, dimensions={0}'
  )
  done = '%d = f32[8,3] all-gather-done(%g)'
  (found,) = hlo_text.collectives(f'{line}\n{done}')
  assert (found['count'], found['bytes'], found['sent']) == (1, 96, 72)


def test_an_all_reduce_of_which_a_part_is_kept_is_a_reduce_scatter():
  hlo = """
%all-reduce-scatter.2 (input_0: bf16[8,4]) -> bf16[8,1] {
  %all-reduce.9 = bf16[8,4]{1,0} all-reduce(%input_0), replica_groups={{0,1,2,3}}, to_apply=%add
}
ENTRY %main (p: bf16[8,4]) -> f32[] {
  %fusion = bf16[8,1]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.2
  %all-reduce.6 = f32[]{:T(128)} all-reduce(%x), replica_groups={{0,1,2,3}}, to_apply=%add
}"""
  assert hlo_text.collectives(hlo) == [
    {'op': 'reduce-scatter', 'devices': 4, 'count': 1, 'bytes': 16, 'sent': 16 * 3},
    {'op': 'all-reduce', 'devices': 4, 'count': 1, 'bytes': 4, 'sent': 6},
  ]


@pytest.mark.parametrize(
  'line',
  [
    '%o = token[] outfeed(%x, %t), outfeed_shape=f32[]',
    '%r = (f32[], u32[], token[]) recv(%t), channel_id=2, is_host_transfer=true',
    '%c = () custom-call(%x), custom_call_target="xla_ffi_python_cpu_callback"',
  ],
)
def test_a_call_to_the_host_is_seen(line):
  assert compile_step.HOST.search(line)
  assert not compile_step.HOST.search('%c = custom-call(%x), custom_call_target="AllocateBuffer"')


PROGRAM = """HloModule jit_step, is_scheduled=true

%fused_computation (param_0: f32[8,128]) -> f32[8,128] {
  %param_0 = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %add.1 = f32[8,128]{1,0:T(8,128)} add(%param_0, %param_0)
}

%body (arg: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %arg = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%arg), index=1
  %y = f32[8,128]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%fused_computation
  ROOT %tuple.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%i, %y)
}

ENTRY %main (p: f32[64,128], q: bf16[8,128]) -> f32[8,128] {
  %p = f32[64,128]{1,0:T(8,128)} parameter(0)
  %q = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(1)
  %cut = ((f32[64,128]{1,0:T(8,128)}), f32[8,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) \
slice-start(%p), slice={[0:8], [0:128]}
  %near = f32[8,128]{1,0:T(8,128)S(1)} slice-done(%cut)
  %sum = f32[8,128]{1,0:T(8,128)} add(%near, %q), metadata={op_name="add"}
  ROOT %out = f32[8,128]{1,0:T(8,128)} copy(%sum)
}
"""


def test_the_traffic_of_hbm_leaves_out_the_memory_on_the_chip():
  tile = 8 * 128
  body = 4 * tile + 4 * tile
  cut, add, copy = 4 * tile, 2 * tile + 4 * tile, 4 * tile + 4 * tile
  assert hlo_text.hbm_bytes(PROGRAM) == body + cut + add + copy


def test_what_a_loop_does_counts_as_often_as_it_runs():
  loop = '%loop = (s32[], f32[8,128]) while(%start), condition=%test, body=%body'
  known = loop + ', backend_config={"known_trip_count":{"n":"9"}}'
  tile = 8 * 128
  entry = 4 * tile + 6 * tile + 8 * tile
  for line, times in ((loop, 1), (known, 9)):
    text = PROGRAM.replace('  %near', f'  {line}\n  %near')
    assert hlo_text.hbm_bytes(text) == times * 8 * tile + entry
  reduce = '  %r = f32[8,128] all-reduce(%x), replica_groups=[2,4]<=[8]\n'
  text = text.replace('  %y = ', f'{reduce}  %y = ')
  assert hlo_text.collectives(text) == [
    {'op': 'all-reduce', 'devices': 4, 'count': 9, 'bytes': 9 * 4 * tile, 'sent': 9 * 6 * tile}
  ]


def test_the_roofline_is_the_slowest_of_three():
  chip = compile_step.Chip(flops=100.0, hbm=1.0, bandwidth=10.0, links=5.0)
  report = {'flops': 200.0, 'bytes': 30.0, 'batch_size': 8, 'collectives': [{'sent': 10.0}] * 2}
  assert compile_step.roofline(report, chip) == {
    'compute_ms': 2000.0,
    'memory_ms': 3000.0,
    'links_ms': 4000.0,
    'images_per_second': 2.0,
  }


def test_the_batch_is_that_of_training():
  config = tiny_config()
  mesh = sharding.make_mesh(config.mesh)
  shapes = functools.partial(jax.tree.map, lambda a: (a.shape, a.dtype))
  assert shapes(compile_step.abstract_batch(config, mesh)) == shapes(batch_of(config, 0))


class TooLarge:
  def __init__(self, config, mesh, phase):
    self.used = (18.97 if config.remat or config.optim.zero1 else 20.5) - phase

  def compile(self, compiler_options):
    raise jax.errors.JaxRuntimeError(
      f'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used {self.used}G of 15.75G hbm.'
    )


@pytest.fixture
def counted(monkeypatch):
  """Billions of multiply-accumulates, given instead of counted in a whole model."""
  macs = {'sar': 1.0, 'rgb': 2.0, 'ifr': 3.0}
  monkeypatch.setattr(compile_step.account, 'account', lambda _: {'gmacs_by_task': macs})


def test_what_does_not_fit_is_reported_with_the_shortfall(counted, monkeypatch, capsys):
  shape = jax.ShapeDtypeStruct(
    (2**20,), np.float32, sharding=sharding.replicated(sharding.make_mesh({'data': 8, 'expert': 1}))
  )
  state = {'model': shape, 'training': {'mu': shape, 'nu': shape}}
  monkeypatch.setattr(compile_step, '_lowered', lambda *x: (TooLarge(*x), state, ()))
  monkeypatch.setattr(compile_step, 'slice_devices', lambda _: jax.devices())
  monkeypatch.setitem(compile_step.CHIPS, 'cpu', compile_step.CHIPS['TPU v5 lite'])
  arguments = ['compile', '--config=quickstart', '--topology=v5e:2x4', '--config.batch_size=24']
  arguments += ['--config.optim.zero1=True', '--mesh=data:4,expert:2']
  assert cli.main([*arguments, '--json']) == 0
  report = json.loads(capsys.readouterr().out)
  assert report['mesh'] == {'data': 4, 'expert': 2}
  assert report['hbm_gib']['shortfall'] == pytest.approx(3.22)
  assert report['flops'] == 6e9 * (1 + 2 + 3) * 8 / 8  # one group a device
  assert report['hbm_gib']['optimizer'] == 2 * report['hbm_gib']['parameters'] == 2**-7
  assert cli.main([*arguments, '--saved']) == 0
  out = capsys.readouterr().out
  assert '3.22 GiB TOO MUCH' in out and re.search('saved +1.530 GiB', out)


def test_every_phase_is_compiled_and_the_largest_reported(counted, monkeypatch, capsys):
  monkeypatch.setattr(compile_step, 'slice_devices', lambda _: jax.devices())
  monkeypatch.setitem(compile_step.CHIPS, 'cpu', compile_step.CHIPS['TPU v5 lite'])
  compiled = []

  def lowered(config, mesh, phase):
    compiled.append(phase)
    rows = jax.ShapeDtypeStruct((2**phase, 2**20), np.float32, sharding=sharding.replicated(mesh))
    return jax.jit(lambda x: x @ x.T).lower(rows), {'model': rows, 'training': ()}, ()

  monkeypatch.setattr(compile_step, '_lowered', lowered)
  arguments = ['compile', '--config=quickstart', '--topology=v5e:2x4', '--config.batch_size=24']
  phases = "--config.phases=((2, None, ('neck/.*',)), (4, None, ('backbone/.*',)), (None,))"
  assert cli.main([*arguments, phases, '--json']) == 0
  report = json.loads(capsys.readouterr().out)
  assert compiled == [0, 1, 2] and report['phase'] == 2
  assert report['phases'] == sorted(set(report['phases']))
  assert report['hbm_gib']['used'] == report['phases'][2]
  assert report['hbm_gib']['parameters'] == 2**-6 and report['roofline']['memory_ms'] > 0
  assert cli.main([*arguments, phases]) == 0
  assert (
    'of phase 2, which needs most; GiB phase by phase: 0.00, 0.01, 0.02' in capsys.readouterr().out
  )
  assert cli.main([*arguments, '--json']) == 0
  assert 'phase' not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--mesh=data:4,experts:2'], 'expected sizes of data, expert'),
    (['--mesh=data:4,expert:2', '--config.batch_size=12'], 'a multiple of 8 x 3 = 24'),
    (['--mesh=data:2,expert:3', '--config.batch_size=18'], 'sizes that do: 1, 2, 4'),
  ],
)
def test_mistakes_are_one_line(arguments, message, monkeypatch, capsys):
  monkeypatch.setattr(compile_step, 'slice_devices', lambda _: jax.devices())
  monkeypatch.setitem(compile_step.CHIPS, 'cpu', compile_step.CHIPS['TPU v5 lite'])
  arguments = ['compile', '--config=quickstart', '--topology=v5e:2x4', *arguments]
  assert cli.main(arguments) == 2
  assert message in capsys.readouterr().err


def test_without_the_compiler_the_error_says_how_to_get_it(monkeypatch, capsys):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  assert cli.main(['compile', '--config=quickstart', '--topology=v5e:2x4']) == 2
  assert "pip install 'sm3det-jax[tpu]'" in capsys.readouterr().err


@NEEDS_LIBTPU
def test_an_unknown_slice_is_an_error():
  with pytest.raises(ValueError, match='--topology=v5e:3x3: expected a kind and a shape'):
    compile_step.slice_devices('v5e:3x3')
  assert len(compile_step.slice_devices('v5p:8x8x8')) == 512


@NEEDS_LIBTPU
@pytest.mark.parametrize(
  'topology, ragged', [('v5e:4x4', True), ('v5e:4x8', False), ('v6e:8x8', True)]
)
def test_the_experts_transport_is_one_that_the_slice_has(topology, ragged):
  """A mesh axis may be a part of the torus' side; v5e has no ragged exchange above 4x4."""
  devices = compile_step.slice_devices(topology)
  mesh = sharding.make_mesh({'data': len(devices) // 2, 'expert': 2}, devices)
  tokens = lambda width, dtype: jax.ShapeDtypeStruct(
    (8 * len(devices), width), dtype, sharding=sharding.batch_sharding(mesh)
  )
  experts = lambda *shape: jax.ShapeDtypeStruct((4, *shape), jnp.bfloat16)
  routed = tokens(16, jnp.bfloat16), tokens(2, jnp.int32), tokens(2, jnp.float32)
  params = experts(16, 32), experts(32), experts(32, 16), experts(16)
  with jax.set_mesh(mesh):
    lowered = jax.jit(expert_parallel.expert_ffn).lower(*routed, *params)
  with compile_step.uncached():
    text = lowered.compile(compiler_options=compile_step.QUICK).as_text()
  assert ('ragged-all-to-all' in text) == ragged


@NEEDS_LIBTPU
@pytest.mark.parametrize(
  'topology, gib', [('v5e:2x4', 15.75), ('v6e:2x4', 31.25), ('v5p:2x2x2', 95.74)]
)
def test_the_compilers_own_refusal_is_understood(topology, gib, counted, monkeypatch):
  """Its words change from release to release."""

  def lowered(config, mesh, phase):
    rows = sharding.replicated(mesh)
    held = jax.ShapeDtypeStruct((2**15, 2**20), np.float32, sharding=rows)  # 128 GiB
    return (
      jax.jit(lambda x: x + 1, donate_argnums=0).lower(held),
      {'model': held, 'training': ()},
      (),
    )

  monkeypatch.setattr(compile_step, '_lowered', lowered)
  config = config_lib.load(['--config=quickstart', '--config.batch_size=24'])
  hbm = compile_step.compile_step(config, topology, quick=True)['hbm_gib']
  assert hbm['parameters'] == 128
  assert hbm['capacity'] == gib and hbm['shortfall'] == pytest.approx(128 - gib, abs=0.02)
  kind = compile_step.slice_devices(topology)[0].device_kind
  assert compile_step.CHIPS[kind].hbm == gib * 2**30


@NEEDS_LIBTPU
@pytest.mark.parametrize('options', [compile_step.QUICK, None])
def test_the_traffic_of_a_real_program(options):
  """Read once, written once, whether by way of the memory on the chip or not."""
  mesh = sharding.make_mesh({'data': 8, 'expert': 1}, compile_step.slice_devices('v5e:2x4'))
  x = jax.ShapeDtypeStruct((2**22,), np.float32, sharding=sharding.replicated(mesh))
  with compile_step.uncached():
    hlo = jax.jit(lambda x: x + 1).lower(x).compile(compiler_options=options).as_text()
  assert hlo_text.hbm_bytes(hlo) == 2 * 4 * x.size


@NEEDS_LIBTPU
def test_gradients_of_spread_moments_are_scattered():
  """As ZeRO-1 has them, on a slice where the compiler does it (docs/scaling.md: not on all)."""
  mesh = sharding.make_mesh({'data': 8, 'expert': 1}, compile_step.slice_devices('v5e:2x4'))
  whole, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
  w = jax.ShapeDtypeStruct((512, 1024), np.float32, sharding=whole)
  x = jax.ShapeDtypeStruct((256, 512), np.float32, sharding=rows)
  loss = lambda w, x: jnp.square(x @ w).sum()
  gradient = jax.jit(jax.grad(loss), out_shardings=sharding.spread(mesh, whole, w))
  with compile_step.uncached():
    hlo = gradient.lower(w, x).compile(compiler_options=compile_step.QUICK).as_text()
  (found,) = hlo_text.collectives(hlo)
  assert (found['op'], found['devices'], found['bytes']) == ('reduce-scatter', 8, 4 * w.size // 8)


@NEEDS_LIBTPU
@pytest.mark.slow
def test_the_tpu_compiler_takes_the_whole_step():
  """Router, experts, rotated RoIAlign and NMS on a slice, without a call to the host."""
  config = tiny_config(8)
  del config.tasks.ifr
  config.batch_size = 3 * 8
  config.moe.blocks = ((), (), (), (0,))
  config.mesh.expert = 2
  report = compile_step.compile_step(config, 'v5e:2x4', quick=True)
  assert report['mesh'] == {'data': 4, 'expert': 2}
  assert 0 < report['hbm_gib']['used'] < 1 and report['hbm_gib']['shortfall'] == 0
  # no device does the images of another
  gathered = sum(c['bytes'] for c in report['collectives'] if c['op'] == 'all-gather')
  assert gathered < 2**20
  assert report['roofline']['images_per_second'] > 0
  again = compile_step.compile_step(config, 'v5e:2x4', quick=True)  # no cache has the first one
  assert again['hbm_gib'] == report['hbm_gib']
