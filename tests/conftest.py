"""Strict numerics for every test: 8 simulated devices, no silent promotion, warnings are errors."""

import os
import pathlib
import tempfile

import jax
import pytest

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update(
  'jax_compilation_cache_dir',
  os.environ.get('JAX_COMPILATION_CACHE_DIR', f'{tempfile.gettempdir()}/sm3det_jax_cache'),
)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)

SHARED = pathlib.Path(__file__).parents[1] / '../shared'


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
