"""ONNX by jax2onnx, whose package asks for an older orbax-checkpoint than this project."""

import contextlib
from collections.abc import Iterator
from unittest import mock

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from data_pipelines.errors import UserError
from sm3det_jax.config import copied
from sm3det_jax.geometry import nms
from sm3det_jax.interop.export import about, program
from sm3det_jax.layers import convolution

CANDIDATES = 1000  # best pairs of box and class of an image that `cut` leaves
BOXES = 'boxes'
OPSET = 23
MISSING = (
  'jax2onnx is not here; as it asks for an older orbax-checkpoint, it needs an environment of its '
  'own: docs/export.md has the commands'
)


def serialised(
  config: ConfigDict, variables: dict, task: str, batch: int | str = 1, cut: str | None = None
) -> bytes:
  """A task's detection as an ONNX model.

  Args:
    config: of the model.
    variables: Flax dict.
    task: one of the config's.
    batch: images at once.
    cut: 'boxes': the best `CANDIDATES` pairs of box and class of an image, without the last NMS.

  Raises:
    UserError: jax2onnx is not installed; a batch of any size.
  """
  if batch == 'any':
    raise UserError('an ONNX model is for a fixed number of images: --batch=4')
  try:
    import jax2onnx  # lazily: no part of this project's environment
  except ImportError as error:
    raise UserError(MISSING) from error
  config = copied(config)
  config.moe.implementation = 'dense'  # every expert on every token: no loop with a traced end
  if cut:
    config.tasks[task].head.max_detections = CANDIDATES
  detect = program.detection(config, task)
  variables = jax.device_get(variables)

  def run(images, shapes):
    found = detect(variables, images, shapes)
    return tuple(found[name] for name in about.OUTPUTS)

  without = _without_nms(config.tasks[task].head) if cut else contextlib.nullcontext()
  with _one_platform(), without:
    model = jax2onnx.to_onnx(
      run,
      list(program.arguments(config, task, batch)),
      model_name=f'sm3det_{task}',
      opset=OPSET,
      input_names=list(about.INPUTS),
      output_names=list(about.OUTPUTS),
    )
  return model.SerializeToString()


@contextlib.contextmanager
def _one_platform() -> Iterator[None]:
  """In it a depthwise convolution is a grouped one, which ONNX has, whatever the platform is.

  ONNX knows no `lax.platform_dependent`.
  """
  grouped = lambda cpu, default, *args, dilation: default(*args, dilation)
  with mock.patch.object(convolution, '_by_platform', grouped):
    yield


@contextlib.contextmanager
def _without_nms(head: ConfigDict) -> Iterator[None]:
  """In it the last NMS of a head keeps the best boxes, whatever overlaps; proposals keep theirs."""
  pairs = nms.multiclass_nms

  def best_pairs(*args):
    with mock.patch.object(nms, 'nms', _best):
      return pairs(*args)

  two_stage = 'roi' in head
  name, best = ('multiclass_nms', best_pairs) if two_stage else ('nms', _best)
  with mock.patch.object(nms, name, best):
    yield


def _best(boxes, scores, iou_threshold, max_outputs, labels=None, valid=None):
  """As `nms.nms`, where no box suppresses another."""
  del iou_threshold, labels
  usable = scores > 0 if valid is None else (scores > 0) & valid
  best, index = jax.lax.top_k(jnp.where(usable, scores, 0), min(max_outputs, len(boxes)))
  return index, best > 0
