"""Exports to ONNX, run by ONNX Runtime, against the model itself; needs jax2onnx and onnxruntime.

python tests/oracle_onnxruntime.py [head ...]
"""

import os
import pathlib
import sys
import tempfile
import time

os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')

import exported  # noqa: E402
import jax  # noqa: E402
import onnxruntime  # noqa: E402

from sm3det_jax import cli  # noqa: E402
from sm3det_jax.interop.export import about, program, weights  # noqa: E402

TOLERANCE = 1e-4


def check(folder: pathlib.Path, model: tuple, kind: str) -> None:
  """Exports a head with the verb and compares what ONNX Runtime makes of it."""
  config, variables = model
  out, start = folder / f'{kind}.onnx', time.perf_counter()
  form = '--format=onnx', f'--task={kind}', '--batch=2', f'--out={out}'
  assert cli.main(['export', f'--workdir={folder / "model.safetensors"}', *form]) == 0
  converted, (pixels, shapes) = time.perf_counter() - start, exported.images(2)
  session = onnxruntime.InferenceSession(out, providers=['CPUExecutionProvider'])
  names = [i.name for i in session.get_inputs()]
  found = session.run(list(about.OUTPUTS), dict(zip(names, (pixels, shapes), strict=True)))
  wanted = jax.device_get(program.detection(config, kind)(variables, pixels, shapes))
  error = exported.difference(dict(zip(about.OUTPUTS, found, strict=True)), wanted)
  print(f'{kind:16} {error:.1e}, converted in {converted:.0f} s')
  assert error < TOLERANCE, kind


def main(kinds):
  model = exported.model(kinds)
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    (folder / 'model.safetensors').write_bytes(weights.serialised(*model))
    for kind in kinds:
      check(folder, model, kind)


if __name__ == '__main__':
  main(tuple(sys.argv[1:]) or exported.KINDS)
