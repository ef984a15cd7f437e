"""Files of weights: `.safetensors`, `.npz`, and everything else as a `.pth` of `torch.save`."""

import os
import pathlib
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import safetensors.numpy

from data_pipelines.errors import UserError
from sm3det_jax.interop.files import unpickle

WRAPPINGS = ('state_dict', 'model')  # of mmcv and timm, of Facebook and Microsoft
# of safetensors, whose own reading into numpy knows neither bfloat16 nor float8
DTYPES = {
  'F64': 'float64', 'F32': 'float32', 'F16': 'float16', 'BF16': ml_dtypes.bfloat16,
  'F8_E4M3': ml_dtypes.float8_e4m3fn, 'F8_E5M2': ml_dtypes.float8_e5m2, 'I64': 'int64',
  'I32': 'int32', 'I16': 'int16', 'I8': 'int8', 'U64': 'uint64', 'U32': 'uint32', 'U16': 'uint16',
  'U8': 'uint8', 'BOOL': 'bool', 'C64': 'complex64',
}  # fmt: skip


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """The state dict of a file, {official name: array}, out of what is wrapped round it.

  Raises:
    FileNotFoundError: no such file.
    UserError: a damaged file, one with other classes than tensors and plain data, or one without
      tensors.
  """
  path = pathlib.Path(path)
  if path.suffix == '.safetensors':
    content = _read_safetensors(path)
  elif path.suffix == '.npz':
    with unpickle.readable(path), path.open('rb') as file:
      content = dict(np.load(file, allow_pickle=False))
  else:
    content = unpickle.load(path)
  inside = content
  for key in WRAPPINGS:
    if isinstance(inside, dict) and isinstance(inside.get(key), dict):
      inside = inside[key]
      break
  state = {}
  if isinstance(inside, dict):
    state = {str(k): v for k, v in inside.items() if isinstance(v, np.ndarray)}
  if not state:
    keys = ', '.join(map(str, content)) if isinstance(content, dict) else type(content).__name__
    raise UserError(f'{path} holds no state dict, but {keys:.200}')
  if all(name.startswith('module.') for name in state):  # of a model trained on several GPUs
    state = {name.removeprefix('module.'): array for name, array in state.items()}
  return state


def write(path: str | os.PathLike, state: dict[str, np.ndarray], classes: tuple[str, ...]) -> None:
  """Writes a state dict in the form that the file's suffix names.

  Args:
    path: ending in .pth, .safetensors or .npz.
    state: {official name: array}.
    classes: names that the heads score; only .pth keeps them, where mmcv looks for them.

  Raises:
    UserError: another suffix.
  """
  path = pathlib.Path(path)
  if path.suffix not in ('.pth', '.safetensors', '.npz'):
    raise UserError(f'{path}: expected a file ending in .pth, .safetensors or .npz')
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix == '.pth':
    _write_pth(path, state, classes)
  elif path.suffix == '.npz':
    np.savez(path, **state)
  else:
    whole = {name: np.asarray(array, order='C') for name, array in state.items()}
    path.write_bytes(safetensors.numpy.save(whole))


def _read_safetensors(path):
  with unpickle.readable(path):
    return {
      name: np.frombuffer(entry['data'], DTYPES[entry['dtype']]).reshape(entry['shape'])
      for name, entry in safetensors.deserialize(path.read_bytes())
    }


def _write_pth(path, state, classes):
  """The zip form of `torch.save({'meta': {'CLASSES': classes}, 'state_dict': state})`."""
  storages = {unpickle.VALUES[f'torch.{n}Storage']: n for n in unpickle.STORAGES}
  program = pickle.PROTO + b'\x02' + pickle.EMPTY_DICT + pickle.MARK
  program += _text('meta') + pickle.EMPTY_DICT + _text('CLASSES') + pickle.MARK
  program += b''.join(map(_text, classes)) + pickle.TUPLE + pickle.SETITEM
  program += _text('state_dict') + ORDERED_DICT + pickle.MARK
  for key, (name, array) in enumerate(state.items()):
    program += _text(name) + _tensor(str(key), array, storages[array.dtype])
  program += pickle.SETITEMS + pickle.SETITEMS + pickle.STOP
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', program)
    archive.writestr('archive/byteorder', 'little')
    for key, array in enumerate(state.values()):
      archive.writestr(f'archive/data/{key}', np.ascontiguousarray(array).tobytes())
    archive.writestr('archive/version', '3\n')


def _text(text):
  content = text.encode()
  return pickle.BINUNICODE + struct.pack('<I', len(content)) + content


def _ints(*numbers):
  """A tuple of integers."""
  return pickle.MARK + b''.join(map(_int, numbers)) + pickle.TUPLE


def _int(number):
  return pickle.LONG1 + b'\x08' + struct.pack('<q', number)


def _name(module, name):
  return pickle.GLOBAL + f'{module}\n{name}\n'.encode()


ORDERED_DICT = _name('collections', 'OrderedDict') + pickle.EMPTY_TUPLE + pickle.REDUCE


def _tensor(key, array, storage):
  """A call of PyTorch's `_rebuild_tensor_v2` on a storage of its own."""
  strides = [int(np.prod(array.shape[i + 1 :])) for i in range(array.ndim)]
  where = pickle.MARK + _text('storage') + _name('torch', f'{storage}Storage')
  where += _text(key) + _text('cpu') + _int(array.size) + pickle.TUPLE + pickle.BINPERSID
  form = _int(0) + _ints(*array.shape) + _ints(*strides) + pickle.NEWFALSE + ORDERED_DICT
  call = _name('torch._utils', '_rebuild_tensor_v2') + pickle.MARK
  return call + where + form + pickle.TUPLE + pickle.REDUCE
