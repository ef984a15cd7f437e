"""Reads and writes `.safetensors`: a length, a JSON header, the bytes of the arrays."""

import json
import os
import pathlib
import struct

import ml_dtypes
import numpy as np

from data_pipelines.errors import UserError

DTYPES = {
  'F64': 'float64', 'F32': 'float32', 'F16': 'float16', 'BF16': ml_dtypes.bfloat16,
  'F8_E4M3': ml_dtypes.float8_e4m3fn, 'F8_E5M2': ml_dtypes.float8_e5m2, 'I64': 'int64',
  'I32': 'int32', 'I16': 'int16', 'I8': 'int8', 'U64': 'uint64', 'U32': 'uint32', 'U16': 'uint16',
  'U8': 'uint8', 'BOOL': 'bool',
}  # fmt: skip
DTYPES = {name: np.dtype(t) for name, t in DTYPES.items()}
NAMES = {t: name for name, t in DTYPES.items()}


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """{name: array}.

  Raises:
    FileNotFoundError: no such file.
    UserError: the header contradicts itself or the file's length.
  """
  content = pathlib.Path(path).read_bytes()
  try:
    (length,) = struct.unpack_from('<Q', content)
    if length > len(content) - 8:
      raise UserError(f'a header of {length} bytes in a file of {len(content)}')
    header = json.loads(content[8 : 8 + length])
    header.pop('__metadata__', None)
    return _arrays(header, memoryview(content)[8 + length :])
  except (AttributeError, KeyError, TypeError, ValueError, struct.error) as error:
    raise UserError(
      f'{path} is damaged, cut short or not of safetensors: {type(error).__name__}: {error}'
    ) from error


def _arrays(header, data):
  arrays, end = {}, 0
  for name, entry in sorted(header.items(), key=lambda item: item[1]['data_offsets']):
    (start, stop), shape, dtype = entry['data_offsets'], entry['shape'], DTYPES[entry['dtype']]
    size = dtype.itemsize
    for n in shape:
      size *= n
    if start != end or stop - start != size or any(n < 0 for n in shape):
      raise UserError(f'{name}: bytes {start} to {stop} after {end}, for {dtype} of {shape}')
    arrays[name] = np.frombuffer(data[start:stop], dtype).reshape(shape)
    end = stop
  if end != len(data):
    raise UserError(f'{end} bytes of arrays announced, {len(data)} there')
  return arrays


def write(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> None:
  """Writes {name: array}."""
  header, offset = {}, 0
  for name, array in arrays.items():
    stop = offset + array.nbytes
    entry = {'dtype': NAMES[array.dtype], 'shape': array.shape, 'data_offsets': (offset, stop)}
    header[name], offset = entry, stop
  text = json.dumps(header).encode()
  text += b' ' * (-len(text) % 8)
  with open(path, 'wb') as file:
    file.write(struct.pack('<Q', len(text)) + text)
    for array in arrays.values():
      file.write(np.ascontiguousarray(array).tobytes())
