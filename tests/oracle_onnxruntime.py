"""Exports to ONNX, run by ONNX Runtime, against the model itself.

Run by the continuous integration in the environment for ONNX (docs/export.md):

  PYTHONPATH=. ENV/bin/python tests/oracle_onnxruntime.py [HEAD ...]
"""

import json
import os
import pathlib
import sys
import tempfile
import time

os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')

import exported  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402

from sm3det_jax import cli  # noqa: E402
from sm3det_jax.geometry import nms  # noqa: E402
from sm3det_jax.interop.export import about, program, weights  # noqa: E402

TOLERANCE = 1e-4


def export(folder: pathlib.Path, kind: str, *options: str) -> pathlib.Path:
  """Where the verb has written a head's ONNX model."""
  out = folder / f'{kind}.onnx'
  form = '--format=onnx', f'--task={kind}', f'--out={out}', *options
  assert cli.main(['export', f'--workdir={folder / "model.safetensors"}', *form]) == 0
  return out


def run(file: pathlib.Path, pixels: np.ndarray, shapes: np.ndarray) -> dict[str, np.ndarray]:
  """What ONNX Runtime makes of images and their shapes."""
  session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
  found = session.run(list(about.OUTPUTS), {'images': pixels, 'shapes': shapes})
  return dict(zip(about.OUTPUTS, found, strict=True))


def suppressed(found: dict, rule: dict) -> dict[str, np.ndarray]:
  """The detections of an image out of every candidate, by the JSON's `nms`."""
  boxes, scores, labels, valid = (found[name][0] for name in about.OUTPUTS)
  limits = rule['nms_iou'], rule['max_detections']
  index, good = map(np.asarray, nms.nms(boxes, scores, *limits, labels, valid))
  return dict(zip(about.OUTPUTS, (boxes[index], scores[index], labels[index], good), strict=True))


def check(folder: pathlib.Path, model: tuple, kind: str) -> None:
  """Exports a head, with the last NMS and without, and compares the detections."""
  config, variables = model
  pixels, shapes = exported.images(1)
  wanted = jax.device_get(program.detection(config, kind)(variables, pixels, shapes))
  start = time.perf_counter()
  inside = exported.difference(run(export(folder, kind), pixels, shapes), wanted)
  middle = time.perf_counter()
  file = export(folder, kind, '--cut=boxes')
  found = run(file, pixels, shapes)
  assert found['valid'].sum() >= wanted['valid'].sum()
  found = suppressed(found, json.loads(about.place(file).read_text())['nms'])
  after = exported.difference(found, {name: array[0] for name, array in wanted.items()})
  seconds = f'{middle - start:.0f} s and {time.perf_counter() - middle:.0f} s'
  rows = wanted['valid'].sum()
  print(f'{kind}: NMS inside {inside:.1e}, after --cut=boxes {after:.1e}, {rows} rows, {seconds}')
  assert max(inside, after) < TOLERANCE, kind


def main(kinds: tuple[str, ...]) -> None:
  onnxruntime.set_default_logger_severity(3)  # from errors on, not what it removes
  model = exported.model(kinds)
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    (folder / 'model.safetensors').write_bytes(weights.serialised(*model))
    for kind in kinds:
      check(folder, model, kind)


if __name__ == '__main__':
  main(tuple(sys.argv[1:]) or exported.KINDS)
