"""`sm3det compile`: the whole training step, compiled for a TPU slice that need not be there.

The TPU compiler is in libtpu, which any machine can install; nothing is allocated or executed. What
a step needs at least follows from the compiled program and the chips' data sheets.
"""

import contextlib
import importlib.util
import math
import os
import re
import resource
import time
from typing import NamedTuple

import jax
from jax.experimental import topologies

from data_pipelines.batch import arrays
from data_pipelines.errors import UserError
from sm3det_jax import sharding
from sm3det_jax.analysis import account, hlo
from sm3det_jax.config import ConfigDict, batch_scaling, copied, phases
from sm3det_jax.model import build
from sm3det_jax.optim import optimizer, training


class Chip(NamedTuple):
  """A TPU as its data sheet has it, but for the memory."""

  flops: float  # a second, bfloat16
  hbm: float  # bytes that the compiler gives to a program
  bandwidth: float  # of HBM, bytes a second
  links: float  # bytes a second into all directions of the torus together, one way


CHIPS = {  # by JAX's name of the device
  'TPU v5 lite': Chip(197e12, 15.75 * 2**30, 819e9, 4 * 45e9),
  'TPU v6 lite': Chip(918e12, 31.25 * 2**30, 1640e9, 4 * 90e9),
  'TPU v5': Chip(459e12, 95.74 * 2**30, 2765e9, 6 * 90e9),
}
HOST = re.compile(
  r' (?:infeed|outfeed)\(|is_host_transfer=true|custom_call_target="\w*callback\w*"'
)
FULL = re.compile(  # arguments and results included
  r'Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm'
  r'|HLO temporaries \(([\d.]+)([KMG])\) exceeds available HBM \(([\d.]+)([KMG])\)'
)
QUICK = {'exec_time_optimization_effort': -1.0}  # XLA compiles every block of a stage anew
GIB = 2**30


def compile_step(config: ConfigDict, topology: str, quick: bool = False) -> dict:
  """Compiles the training step of a checked config and says what it needs.

  With `config.phases` the step of each phase is compiled, and the report is that of the one that
  needs most memory.

  Args:
    config: as `sm3det_jax.config.load` returns it; its mesh has to fit the slice.
    topology: kind and shape of the slice, such as 'v5e:16x16', 'v6e:4x4' or 'v5p:8x8x8'.
    quick: with XLA's least effort, in a fraction of the time: the program would be slower, and its
      memory and traffic are those of one less optimised.

  Returns:
    'topology', 'devices', 'mesh', 'batch_size';
    'hbm_gib' of a device: 'parameters', 'optimizer', 'batch' (what the step is given), 'used' and
    'capacity' of the whole program, and 'shortfall', 0 where it fits;
    'flops' of a device: those of the matrix products of forward and backward pass;
    and, where it fits, 'bytes' that a device moves to and from HBM (see `hlo.hbm_bytes`),
    'collectives' [{'op', 'devices', 'count', 'bytes', 'sent'}] of a device, and 'roofline' with
    'compute_ms', 'memory_ms', 'links_ms' and 'images_per_second', at most;
    with `config.phases` 'phase', the number of the one that it is of, and 'phases', the 'used' GiB
    of each;
    'compile_s' and 'host_gib', the time and the host's memory that it took.

  Raises:
    UserError: libtpu is not installed, a topology that it does not know, a mesh that does not fit,
      or a step that calls the host.
  """
  config = batch_scaling.scaled(config)
  if config.dtype == 'auto':
    config.dtype = 'bfloat16'
  devices = slice_devices(topology)
  chip = CHIPS[devices[0].device_kind]
  mesh = sharding.make_mesh(config.mesh, devices)
  sharding.check_mesh(config, mesh)
  start = time.perf_counter()
  macs = account.account(config)['gmacs_by_task']
  groups = config.batch_size // sum(task.ratio for task in config.tasks.values())
  flops = 6e9 * sum(macs[n] * t.ratio for n, t in config.tasks.items()) * groups / mesh.size
  common = {
    'topology': topology,
    'devices': mesh.size,
    'mesh': dict(mesh.shape),
    'batch_size': config.batch_size,
    'flops': flops,
  }
  count = len(phases.phases(config))
  reports = [common | _of_phase(config, mesh, phase, quick, chip) for phase in range(count)]
  used = [report['hbm_gib']['used'] for report in reports]
  report = reports[used.index(max(used))]
  if config.phases:
    report |= {'phase': used.index(max(used)), 'phases': used}
  if 'bytes' in report:
    report['roofline'] = roofline(report, chip)
  report['compile_s'] = time.perf_counter() - start
  report['host_gib'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  return report


def _of_phase(config, mesh, phase, quick, chip):
  """What of a report the compiled step of one phase says."""
  lowered, state, batch = _lowered(config, mesh, phase)
  report = {
    'hbm_gib': {
      'parameters': _held(state['model']) / GIB,
      'optimizer': _held(state['training']) / GIB,
      'batch': _held(batch) / GIB,
    }
  }
  try:
    with uncached():
      compiled = lowered.compile(compiler_options=QUICK if quick else None)
  except jax.errors.JaxRuntimeError as error:
    full = FULL.search(str(error))
    if not full:
      raise
    used, unit, capacity, capacity_unit = filter(None, full.groups())
    scale = {'K': 2**-20, 'M': 2**-10, 'G': 1}
    used, capacity = float(used) * scale[unit], float(capacity) * scale[capacity_unit]
    report['hbm_gib'] |= {'used': used, 'capacity': capacity, 'shortfall': used - capacity}
  else:
    memory, text = compiled.memory_analysis(), compiled.as_text()
    if found := HOST.findall(text):
      raise UserError(f'the compiled step calls the host: {sorted(set(found))}')
    used = memory.peak_memory_in_bytes + memory.generated_code_size_in_bytes
    report['hbm_gib'] |= {'used': used / GIB, 'capacity': chip.hbm / GIB, 'shortfall': 0.0}
    report['bytes'] = hlo.hbm_bytes(text)
    report['collectives'] = hlo.collectives(text)
  return report


def memory_saved(report: dict, config: ConfigDict, topology: str, quick: bool = False) -> float:
  """GiB of a device that `remat` and `optim.zero1` save: compiles the step without them too.

  Args:
    report: of `config`.
    config, topology, quick: as `compile_step` had them.
  """
  plain = copied(config)
  plain.remat, plain.optim.zero1 = (), False
  whole = compile_step(plain, topology, quick)
  return whole['hbm_gib']['used'] - report['hbm_gib']['used']


def slice_devices(topology: str) -> list[jax.Device]:
  """The devices of a slice, as the TPU compiler knows them; errors as `compile_step`."""
  found = importlib.util.find_spec('libtpu')
  if found is None:
    raise UserError("the TPU compiler is missing: pip install 'sm3det-jax[tpu]'")
  library = os.path.join(found.submodule_search_locations[0], 'libtpu.so')
  # ask no metadata server what this machine is, and share the library: no TPU is used
  os.environ.update(
    TPU_LIBRARY_PATH=library,
    TPU_SKIP_MDS_QUERY='1',
    TPU_WORKER_HOSTNAMES='localhost',
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
  )
  jax.config.update('jax_platforms', 'cpu')
  try:
    devices = topologies.get_topology_desc(platform='tpu', topology_name=topology).devices
  except jax.errors.JaxRuntimeError as error:
    raise UserError(
      f'--topology={topology}: expected a kind and a shape such as v5e:2x4, v6e:16x16 or '
      f'v5p:8x8x8 ({error})'
    ) from error
  if (kind := devices[0].device_kind) not in CHIPS:
    raise UserError(f'--topology={topology}: {kind}; known chips: {", ".join(CHIPS)}')
  return devices


def _lowered(config, mesh, phase):
  """The step of a phase on a mesh, not yet compiled, with the state and the batch that it takes."""
  model = build(config)
  tx = optimizer.build(config, model.term_groups)
  state, batch = training.abstract_state(config, model, tx, mesh), abstract_batch(config, mesh)
  step = training.sharded_step(config, model, tx, mesh, phase)
  with jax.set_mesh(mesh):
    return step.lower(state, batch), state, batch


def abstract_batch(config: ConfigDict, mesh: jax.sharding.Mesh) -> dict:
  """Shapes, types and shardings of a global batch of 8-bit images."""
  micro, batch = config.optim.accumulate, {}
  where = sharding.batch_sharding(mesh, micro)

  def array(dtype, n, *shape):
    images = (micro, n // micro) if micro > 1 else (n,)
    return jax.ShapeDtypeStruct((*images, *shape), dtype, sharding=where)

  groups = config.batch_size // sum(task.ratio for task in config.tasks.values())
  for name, task in config.tasks.items():
    n = groups * task.ratio
    batch[name] = {key: array(a.dtype, n, *a.shape) for key, a in arrays(task).items()}
  return batch


@contextlib.contextmanager
def uncached():
  """Keeps programs out of the persistent cache: without their devices none can be loaded again."""
  name = 'jax_persistent_cache_min_compile_time_secs'
  before = getattr(jax.config, name)
  jax.config.update(name, math.inf)
  try:
    yield
  finally:
    jax.config.update(name, before)


def _held(tree):
  """Bytes of a tree of abstract arrays on one device."""
  return sum(
    math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(tree)
  )


def roofline(report: dict, chip: Chip) -> dict:
  """The least time of a step, if products, HBM and links all ran at their best at once."""
  seconds = {
    'compute_ms': report['flops'] / chip.flops,
    'memory_ms': report['bytes'] / chip.bandwidth,
    'links_ms': sum(c['sent'] for c in report['collectives']) / chip.links,
  }
  milliseconds = {name: 1e3 * s for name, s in seconds.items()}
  return milliseconds | {'images_per_second': report['batch_size'] / max(seconds.values())}


def table(report: dict) -> str:
  """A report of `compile_step` as text."""
  hbm = report['hbm_gib']
  mesh = ' x '.join(f'{axis} {size}' for axis, size in report['mesh'].items())
  rows = [
    f'{report["topology"]}: {report["devices"]} devices, mesh {mesh}, batch {report["batch_size"]}',
    f'HBM of a device   {hbm["used"]:8.2f} GiB of {hbm["capacity"]:.2f} GiB'
    + (f', {hbm["shortfall"]:.2f} GiB TOO MUCH' if hbm['shortfall'] else ''),
    *_phases(report),
    *(f'  {part:15} {hbm[part]:8.3f} GiB' for part in ('parameters', 'optimizer', 'batch')),
    *([f'  saved           {hbm["saved"]:8.3f} GiB by remat and zero1'] if 'saved' in hbm else []),
    f'products          {report["flops"] / 1e12:8.3f} TFLOP a device',
  ]
  if 'roofline' in report:
    rows.append(
      f'HBM traffic       {report["bytes"] / 1e9:8.3f} GB a device, loops of unknown length once'
    )
    rows += [
      f'{c["op"]:17} {c["bytes"] / 1e6:8.2f} MB in {c["count"]} among {c["devices"]} devices, '
      f'{c["sent"] / 1e6:.2f} MB sent by each'
      for c in report['collectives']
    ]
    line = report['roofline']
    rows.append(
      f'a step takes at least {line["compute_ms"]:.2f} ms for products, {line["memory_ms"]:.2f} ms '
      f'for HBM, {line["links_ms"]:.2f} ms for links: at most '
      f'{line["images_per_second"]:,.0f} images/s'
    )
  rows.append(
    f'compiled in {report["compile_s"]:.0f} s, {report["host_gib"]:.1f} GiB on this machine'
  )
  return '\n'.join(rows)


def _phases(report):
  """The line that says which phase a report is of, where there are several."""
  if 'phase' not in report:
    return []
  each = ', '.join(f'{used:.2f}' for used in report['phases'])
  return [f'of phase {report["phase"]}, which needs most; GiB phase by phase: {each}']
