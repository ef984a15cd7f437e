"""Strict numerics for every test: 8 simulated devices, no silent promotion, warnings are errors."""

import datetime
import importlib.metadata
import os
import pathlib
import tempfile
import zlib

# most of the time goes into compiling programs that run once
FLAGS = '--xla_backend_optimization_level=0'
if importlib.metadata.version('jax') < '0.11':  # which knows these no more
  FLAGS += ' --xla_cpu_use_fusion_emitters=false --xla_llvm_disable_expensive_passes=true'
os.environ.setdefault('XLA_FLAGS', FLAGS)
# one cache for all processes of a run, those that tests start too; a bounded one has a lock
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', f'{tempfile.gettempdir()}/sm3det_jax_tests')
os.environ.setdefault('JAX_COMPILATION_CACHE_MAX_SIZE', str(8 << 30))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_numpy_rank_promotion', 'raise')

SHARED = pathlib.Path(__file__).parents[1] / '../shared'


def pytest_addoption(parser):
  parser.addoption(
    '--drawn',
    type=datetime.date.fromisoformat,
    metavar='DATE',
    help='of the tests marked drawn(n) those of that date: each comes every n days',
  )


def pytest_collection_modifyitems(config, items):
  """Leaves out what another day has. The cases of one test take turns."""
  if (date := config.getoption('--drawn')) is None:
    return
  seen, kept, out = {}, [], []
  for item in items:
    test = f'{item.path.name}::{item.function.__name__}'
    turn = seen[test] = seen.get(test, zlib.crc32(test.encode())) + 1
    days = next((mark.args[0] for mark in item.iter_markers('drawn')), 1)
    (out if (turn + date.toordinal()) % days else kept).append(item)
  config.hook.pytest_deselected(items=out)
  items[:] = kept


@pytest.fixture(scope='session')
def golden() -> pathlib.Path:
  """Recorded values of the official model."""
  if not (SHARED / 'golden').is_dir():
    pytest.skip('../shared/golden (recorded values of the official model) is not here')
  return SHARED / 'golden'


@pytest.fixture(scope='session')
def real_data() -> pathlib.Path:
  """Real SAR, optical and infrared images with labels."""
  if not (SHARED / 'data').is_dir():
    pytest.skip('../shared/data (real images) is not here')
  return SHARED / 'data'
