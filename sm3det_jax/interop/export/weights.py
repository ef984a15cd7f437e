"""A run's variables as safetensors: `params/backbone/..` and so on, the config as metadata."""

import json
import os
import pathlib

import jax
import numpy as np
import safetensors
import safetensors.numpy
from ml_collections import ConfigDict

from data_pipelines.errors import UserError
from sm3det_jax.config import check, complete, files
from sm3det_jax.interop.export import about


def serialised(config: ConfigDict, variables: dict) -> bytes:
  """Variables by their Flax paths, joined by `/`; the metadata has the config as JSON."""
  leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(variables))
  arrays = {'/'.join(key.key for key in path): np.asarray(leaf, order='C') for path, leaf in leaves}
  metadata = {
    'what': about.KIND,
    'version': str(about.VERSION),
    'config': json.dumps(config.to_dict()),
  }
  return safetensors.numpy.save(arrays, metadata)


def read(file: str | os.PathLike) -> tuple[ConfigDict, dict]:
  """(config, variables) of a file of `serialised`, the arrays bit by bit.

  Raises:
    FileNotFoundError: no such file.
    UserError: damaged, or not of `sm3det export`.
  """
  file = pathlib.Path(file)
  file.stat()  # or FileNotFoundError, with its name
  try:
    with safetensors.safe_open(file, 'numpy') as content:
      metadata = content.metadata() or {}
      flat = {name: content.get_tensor(name) for name in content.keys()}
    config = complete(files.of_json(json.loads(metadata['config'])))
  except (safetensors.SafetensorError, KeyError, ValueError) as error:
    raise UserError(
      f'{file} is damaged or not of `sm3det export --format=safetensors` '
      f'({type(error).__name__}: {error})'
    ) from error
  variables = {}
  for name, array in flat.items():
    *folders, last = name.split('/')
    inside = variables
    for folder in folders:
      inside = inside.setdefault(folder, {})
    inside[last] = array
  return check(config), variables
