"""An exported model as `Detector` takes it, with jax and numpy alone: none of the model's code."""

import os
import pathlib
from collections import namedtuple
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from ml_collections import ConfigDict

from data_pipelines.errors import UserError
from sm3det_jax.interop.export import about

Detections = namedtuple('Detections', about.OUTPUTS)  # as the heads', which are not loaded here


def load(file: str | os.PathLike) -> tuple[ConfigDict, dict, Callable]:
  """An export of `sm3det export --format=stablehlo`.

  Args:
    file: of the program; its JSON lies beside it.

  Returns:
    (config, variables, steps): what of the config detection asks for; variables that stand for the
    file; and task -> ((variables, images, shapes) -> detections), for images of any type and batch.

  Raises:
    FileNotFoundError: no such file.
    UserError: as `about.read`; another format; made for other platforms than this one; this jax
      does not read it.
  """
  file = pathlib.Path(file)
  data, content = about.read(file)
  if content.get('format') != 'stablehlo':
    raise UserError(f'{file} is of format {content.get("format")}; a stablehlo export is needed')
  here = export.default_export_platform()
  if here not in content['platforms']:
    raise UserError(
      f'{file} was exported for {", ".join(content["platforms"])}, and this is {here}: export it '
      f'with --platforms={here}, or choose one with JAX_PLATFORMS'
    )
  try:
    program = export.deserialize(bytearray(data))
  except ImportError as error:
    raise UserError(f'{error}: pip install flatbuffers') from error
  except Exception as error:  # whatever the versions between make of it
    raise UserError(
      f'{file} was exported by jax {content["jax"]} and jax {jax.__version__} does not read it '
      f'({str(error).splitlines()[0]:.100}): export it anew (docs/export.md)'
    ) from error
  step = _step(jax.jit(program.call), content['batch'])
  variables = {'sha256': jnp.asarray(np.frombuffer(bytes.fromhex(content['sha256']), np.uint8))}
  return about.config_of(content), variables, lambda task: step


def _step(call, batch):
  """(variables, images, shapes) -> Detections, by a program for `batch` images or 'any' number."""

  def step(variables, images, shapes):
    place = variables['sha256'].sharding  # where to compute; the parameters are in the program
    images, shapes = np.asarray(images, np.float32), np.asarray(shapes, np.int32)
    n = len(images)
    size = n if batch == 'any' else batch
    if rest := -n % size:
      images, shapes = (np.concatenate([a, np.repeat(a[-1:], rest, 0)]) for a in (images, shapes))
    part = lambda i: jax.device_put((images[i : i + size], shapes[i : i + size]), place)
    parts = [call(*part(i)) for i in range(0, n, size)]
    return Detections(*(jnp.concatenate([p[k] for p in parts])[:n] for k in about.OUTPUTS))

  return step
