"""Compiled programs are kept from one run to the next, in a folder of the user's cache."""

import glob
import hashlib
import importlib.metadata
import logging
import os
import pathlib
import platform
import warnings
from collections.abc import Mapping

import filelock

VARIABLE = 'SM3DET_CACHE'  # 'off', or a folder
SIZE = 2 << 30  # bytes; what was used longest ago goes
LEAST_SECONDS = 0.1  # what compiles faster is not worth a file

logger = logging.getLogger(__name__)


def enable() -> None:
  """Makes JAX keep what it compiles, unless it does already or `SM3DET_CACHE=off`.

  A cache that cannot be used costs the time to compile, never the run. Processes may share it.
  """
  import jax  # lazily: the folder is known without

  if jax.config.jax_compilation_cache_dir or (path := folder(os.environ)) is None:
    return
  try:
    _make(path)
  except (OSError, ValueError) as error:
    logger.debug('compiled programs are not kept: %s', error)
    return
  # a lock that is not to be had, a full disk: the program is compiled, and that is all
  warnings.filterwarnings('ignore', r'Error (reading|writing) persistent compilation cache')
  jax.config.update('jax_compilation_cache_dir', str(path))
  jax.config.update('jax_compilation_cache_max_size', SIZE)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', LEAST_SECONDS)


def folder(environment: Mapping[str, str]) -> pathlib.Path | None:
  """Where this jax keeps programs for this machine; None if it is not to.

  Programs hold the machine's own instructions, and homes are shared by machines of several kinds.
  """
  chosen = environment.get(VARIABLE)
  if chosen == 'off':
    return None
  home = environment.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  root = pathlib.Path(chosen or f'{home}/sm3det_jax').absolute()
  return root / f'{importlib.metadata.version("jax")}-{platform.machine()}-{_instructions()}'


def _instructions():
  """A short name of what instructions the processor knows."""
  info = pathlib.Path('/proc/cpuinfo')
  lines = info.read_text().splitlines() if info.exists() else [f'flags: {platform.processor()}']
  known = {line for line in lines if line.lower().startswith(('flags', 'features'))}
  return hashlib.sha256('\n'.join(sorted(known)).encode()).hexdigest()[:8]


def _make(path):
  """Makes the folder, for its owner alone: who writes there has his programs run.

  Raises:
    OSError: it cannot be made or written, or another process does not let go of it.
    ValueError: JAX would take its name for a pattern, and never find what to throw away.
  """
  if glob.escape(str(path)) != str(path):
    raise ValueError(f'{path} has one of *?[')
  path.mkdir(mode=0o700, parents=True, exist_ok=True)
  with filelock.FileLock(path / '.lockfile', timeout=1):
    # halves, left by a kill or a full disk, which JAX would stumble over for ever
    for program in path.glob('*-cache'):
      if not program.with_name(f'{program.name.removesuffix("-cache")}-atime').exists():
        program.unlink()
