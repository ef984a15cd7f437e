"""Compiled programs are found again by another process; a cache that fails costs no run."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from sm3det_jax import compilation_cache

ROOT = pathlib.Path(__file__).parents[1]
CODE = """
from sm3det_jax import compilation_cache
compilation_cache.LEAST_SECONDS = 0
compilation_cache.enable()
import jax, jax.numpy as jnp
found = []
jax.monitoring.register_event_listener(lambda event, **_: found.append(event))
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8)))
print(sum(e.endswith('cache_hits') for e in found), jax.config.jax_compilation_cache_dir)
"""


@pytest.fixture
def enabled(monkeypatch):
  """Where `enable` has JAX keep programs under some environment, JAX having been told nothing."""

  def enable(**environment):
    for name, value in environment.items():
      monkeypatch.setenv(name, str(value))
    jax.config.update('jax_compilation_cache_dir', None)
    compilation_cache.enable()
    return jax.config.jax_compilation_cache_dir

  names = ('dir', 'max_size')
  before = {n: getattr(jax.config, f'jax_compilation_cache_{n}') for n in names}
  seconds = jax.config.jax_persistent_cache_min_compile_time_secs
  yield enable
  for name, value in before.items():
    jax.config.update(f'jax_compilation_cache_{name}', value)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', seconds)


def test_the_second_process_finds_what_the_first_compiled(tmp_path):
  clean = {k: v for k, v in os.environ.items() if 'CACHE' not in k}
  for first in (True, False):
    done = subprocess.run(
      [sys.executable, '-c', CODE], capture_output=True, text=True, cwd=ROOT,
      env=clean | {'XDG_CACHE_HOME': str(tmp_path)},
    )  # fmt: skip
    assert not done.returncode and not done.stderr, done.stderr
    hits, where = done.stdout.split()
    assert (int(hits) == 0) == first
  assert pathlib.Path(where).parent == tmp_path / 'sm3det_jax'
  assert pathlib.Path(where).stat().st_mode & 0o777 == 0o700


def test_it_can_be_elsewhere_or_off(enabled, tmp_path):
  assert enabled(SM3DET_CACHE=tmp_path / 'here').startswith(f'{tmp_path}/here/')
  assert jax.config.jax_compilation_cache_max_size == compilation_cache.SIZE
  assert enabled(SM3DET_CACHE='off') is None
  jax.config.update('jax_compilation_cache_dir', 'of JAX itself')
  compilation_cache.enable()
  assert jax.config.jax_compilation_cache_dir == 'of JAX itself'


@pytest.mark.parametrize('name', ['file/below', 'a[b]'])
def test_a_cache_that_cannot_be_is_a_line_for_those_who_search(name, enabled, tmp_path, caplog):
  (tmp_path / 'file').write_text('')
  with caplog.at_level('DEBUG', logger='sm3det_jax'):
    assert enabled(SM3DET_CACHE=tmp_path / name) is None
  assert 'compiled programs are not kept' in caplog.text and name in caplog.text


def test_half_a_program_is_thrown_away(enabled, tmp_path):
  folder = pathlib.Path(enabled(SM3DET_CACHE=tmp_path))
  for name in ('whole-cache', 'whole-atime', 'half-cache'):
    (folder / name).write_bytes(b'x')
  assert enabled() == str(folder)
  assert {p.name for p in folder.iterdir()} - {'.lockfile'} == {'whole-cache', 'whole-atime'}


def test_versions_and_machines_have_folders_of_their_own(monkeypatch):
  def name(version='1.2', flags='flags : avx'):
    monkeypatch.setattr('importlib.metadata.version', lambda _: version)
    monkeypatch.setattr(pathlib.Path, 'read_text', lambda _: f'bogomips : {os.urandom(2)}\n{flags}')
    return compilation_cache.folder({'SM3DET_CACHE': '/cache'})

  if not pathlib.Path('/proc/cpuinfo').exists():
    pytest.skip('flags are read on Linux')
  assert name() == name() and name().parent == pathlib.Path('/cache')
  assert len({name(), name(version='1.3'), name(flags='flags : avx avx512f')}) == 3
