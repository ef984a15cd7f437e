"""The wheel holds all it needs, away from the checkout."""

import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ('sm3det_jax', 'data_pipelines', 'configs')

pytestmark = pytest.mark.slow


def run(*command, **options):
  done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
  assert not done.returncode, f'{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}'
  return done.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """The wheel, built from a copy, so that the checkout keeps no build folder."""
  folder = tmp_path_factory.mktemp('wheel')
  source = folder / 'source'
  source.mkdir()
  for name in PACKAGES:
    shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
  for name in ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, source)
  try:  # where setuptools can build wheels by itself, nothing is fetched
    alone = int(importlib.metadata.version('setuptools').split('.')[0]) >= 77
  except importlib.metadata.PackageNotFoundError:
    alone = False
  isolated = ['--no-build-isolation'] if alone else []
  run(sys.executable, '-m', 'pip', 'wheel', '--no-deps', *isolated, '-w', folder, source)
  (built,) = folder.glob('*.whl')
  return built


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
  """(folder, environment): the wheel installed there, found before the checkout."""
  folder = tmp_path_factory.mktemp('installed')
  pip = (sys.executable, '-m', 'pip', 'install', '--no-deps', '--target', folder)
  run(*pip, wheel)
  ours = {'XLA_FLAGS': '', 'PYTHONPATH': str(folder), 'JAX_PLATFORMS': 'cpu'}
  return folder, {**os.environ, **ours}


def test_the_wheel_holds_every_file_of_the_packages(wheel):
  ours = {
    str(p.relative_to(ROOT))
    for name in PACKAGES
    for p in (ROOT / name).rglob('*')
    if p.is_file() and '__pycache__' not in p.parts
  }
  names = set(zipfile.ZipFile(wheel).namelist())
  assert ours <= names
  assert any(n.endswith('LICENSE') for n in names)
  assert not [n for n in names if n.startswith('tests/')]


def test_quickstart_runs_from_another_folder(installed, tmp_path):
  folder, environment = installed
  code = 'import configs, data_pipelines, sm3det_jax as s; print(s.__file__, configs.__file__)'
  files = run(sys.executable, '-c', code, cwd=tmp_path, env=environment)
  assert all(f.startswith(str(folder)) for f in files.split())
  run(
    folder / 'bin/sm3det', 'quickstart', '--steps=2', f'--workdir={tmp_path / "out"}',
    cwd=tmp_path, env=environment,
  )  # fmt: skip
  metrics = json.loads((tmp_path / 'out/metrics.json').read_text())
  assert set(metrics['tasks']) == {'sar', 'rgb', 'ifr'} and 'h_map' in metrics


def test_a_shipped_config_is_found_by_name(installed, tmp_path):
  folder, environment = installed
  code = """
from sm3det_jax import config
print(config.load(['--config=sm3det_convnext_t']).optim.steps)
"""
  assert run(sys.executable, '-c', code, cwd=tmp_path, env=environment).split() == ['33468']
