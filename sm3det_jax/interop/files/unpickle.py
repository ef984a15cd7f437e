"""Reads PyTorch's `.pth` files without PyTorch and without running anything that they ask for.

Both forms of `torch.save` are read: the zip archive, and the older sequence of pickles (before
PyTorch 1.6) that the storages' bytes follow. Besides tensors and plain containers a file may hold
numpy scalars and `argparse.Namespace` (as a dict); any other class is refused by name.
"""

import contextlib
import io
import os
import pathlib
import re
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from data_pipelines.errors import UserError
from sm3det_jax.interop.files import pickle_machine
from sm3det_jax.interop.files.pickle_machine import Known, Refused, flat

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the older form
STORAGES = {  # PyTorch's names of storages and what lies in them
  'Double': 'float64', 'Float': 'float32', 'Half': 'float16', 'BFloat16': 'bfloat16',
  'Long': 'int64', 'Int': 'int32', 'Short': 'int16', 'Char': 'int8', 'Byte': 'uint8',
  'Bool': 'bool', 'ComplexFloat': 'complex64', 'ComplexDouble': 'complex128',
}  # fmt: skip
SPECIAL = {n: getattr(ml_dtypes, n) for n in ('bfloat16', 'float8_e4m3fn', 'float8_e5m2')}
DTYPES = {*STORAGES.values(), *SPECIAL, 'uint16', 'uint32', 'uint64'}


def load(path: str | os.PathLike) -> Any:
  """What `torch.save` wrote: plain containers, and tensors as arrays that share their storages.

  Raises:
    FileNotFoundError: no such file.
    UserError: the file holds another class or function (named in the message); it is damaged, cut
      short, or not of `torch.save`.
  """
  path = pathlib.Path(path)
  with readable(path):
    if zipfile.is_zipfile(path):
      with zipfile.ZipFile(path) as archive:
        return _from_zip(archive)
    with path.open('rb') as file:
      return _from_pickles(file, path.stat().st_size)


@contextlib.contextmanager
def readable(path):
  """Whatever damage makes of the readers becomes one UserError with the file and what it is."""
  try:
    yield
  except (FileNotFoundError, IsADirectoryError, PermissionError):
    raise
  except Refused as error:
    raise UserError(f'{path} is refused, nothing of it was run: {error}') from None
  except Exception as error:  # a torn or forged file may break any of them
    form = '(.pth, .npz or .safetensors)'
    raise UserError(f'{path} is no state dict {form}: {_damage(error, path):.200}') from error


def _damage(error, path):
  """Words for what broke a reader, whose own are of its code."""
  if isinstance(error, UserError):  # ours
    return str(error)
  if not path.stat().st_size:
    return 'it is empty'
  if isinstance(error, zipfile.BadZipFile):
    return 'its zip archive is damaged or cut short'
  return 'it is damaged, cut short or of another kind'


def _from_zip(archive):
  entries = {e.filename: e for e in archive.infolist()}
  (root,) = [n.removesuffix('data.pkl') for n in entries if n.rpartition('/')[2] == 'data.pkl']
  if f'{root}byteorder' in entries:
    _little_endian(archive.read(f'{root}byteorder') == b'little')

  def storage(key, dtype, count):
    entry = entries[f'{root}data/{key}']
    if entry.file_size != count * dtype.itemsize:
      raise UserError(f'storage {key} has {entry.file_size} bytes, not {count} of {dtype}')
    return np.frombuffer(archive.read(entry), dtype)

  return pickle_machine.run(io.BytesIO(archive.read(f'{root}data.pkl')), _known(storage))


def _from_pickles(file, size):
  storages = {}

  def storage(key, dtype, count):
    """Room for what the end of the file holds; tensors are views of it before it is there."""
    if not 0 <= count * dtype.itemsize <= size:
      raise UserError(f'storage {key} of {count} {dtype} in {size} bytes')
    storages[key] = np.empty(count, dtype)
    return storages[key]

  known = _known(storage)
  if pickle_machine.run(file, known) != MAGIC:
    raise UserError('its first number is not that of PyTorch')
  pickle_machine.run(file, known)  # version of the form
  _little_endian(pickle_machine.run(file, known)['little_endian'])
  result = pickle_machine.run(file, known)
  for key in pickle_machine.run(file, known):
    into = storages[flat(key)]
    (count,) = struct.unpack('<q', file.read(8))
    if count != len(into) or file.readinto(into.view(np.uint8)) != into.nbytes:
      raise UserError(f'storage {key} is not whole')
  return result


def _little_endian(is_it):
  if not is_it:
    raise UserError('its numbers are big-endian')


def _known(storage: Callable) -> Known:
  """What a file may hold; `storage` gives the flat array of (key, dtype, number of elements)."""
  storages = {}

  def persistent(identity):
    kind, dtype, key, _, count, *view = identity
    if kind != 'storage' or type(count) is not int or view not in ([], [None]):
      raise Refused('it refers to something that is no storage of a tensor')
    if flat(key) not in storages:
      storages[key] = storage(key, _is_dtype(dtype), count)
    array = storages[key]
    if array.dtype != dtype:
      raise UserError(f'storage {key} is both {array.dtype} and {dtype}')
    return array

  return Known(VALUES, CALLS, _build, persistent)


def _tensor(storage, offset, shape, strides, *_):
  """A view of a storage, checked to lie within it."""
  numbers = (offset, *shape, *strides)
  if type(storage) is not np.ndarray or any(type(n) is not int or n < 0 for n in numbers):
    raise UserError('a tensor without storage, or with an offset, shape or stride below 0')
  if 0 in shape:
    return np.empty(shape, storage.dtype)
  last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
  if last >= len(storage):
    raise UserError(f'a tensor of {shape} reaches beyond its storage of {len(storage)}')
  steps = [s * storage.dtype.itemsize for s in strides]
  return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)


def _typed_tensor(storage, offset, shape, strides, _grad, _hooks, dtype, *_):
  """A tensor whose storage is bytes."""
  return _tensor(storage.view(_is_dtype(dtype)), offset, shape, strides)


def _dtype(spec, *_):
  if type(spec) is not str or not re.fullmatch(r'[<|=]?([biufc]\d{1,2}|[SU]\d{1,6})', spec):
    raise Refused('it holds a numpy object that is no number or text')
  return np.dtype(spec)


def _is_dtype(dtype):
  if not isinstance(dtype, np.dtype):
    raise TypeError(f'a {type(dtype).__name__} as dtype')
  return dtype


def _scalar(dtype, content):
  return np.frombuffer(content, _is_dtype(dtype), 1)[0]


def _encode(text, encoding):
  """Bytes, as Python 3 writes them for Python 2."""
  if encoding != 'latin1':
    raise UserError('bytes in another encoding than latin1')
  return text.encode('latin1')


class _Namespace(dict):
  """The attributes of an object."""


def _build(target, state):
  if type(target) is _Namespace:
    target.update((flat(k), v) for k, v in state.items())
  elif isinstance(target, np.dtype):
    _little_endian(state[1] in ('<', '|', '='))
  elif type(target) is not dict:  # an ordered dict has PyTorch's notes on modules
    raise Refused(f'it sets attributes of a {type(target).__name__}')


VALUES = {f'torch.{t}': np.dtype(SPECIAL.get(t, t)) for t in DTYPES}
VALUES |= {f'torch.{name}Storage': VALUES[f'torch.{t}'] for name, t in STORAGES.items()}
VALUES['torch.storage.UntypedStorage'] = np.dtype(np.uint8)

CALLS = {
  'collections.OrderedDict': lambda items=(): {flat(k): v for k, v in items},
  'argparse.Namespace': lambda: _Namespace(),
  'torch._utils._rebuild_tensor': _tensor,
  'torch._utils._rebuild_tensor_v2': _tensor,
  'torch._utils._rebuild_tensor_v3': _typed_tensor,
  'torch._utils._rebuild_parameter': lambda data, *_: data,
  'torch._utils._rebuild_parameter_with_state': lambda data, *_: data,
  'torch.Size': tuple,
  'torch.device': lambda *parts: ':'.join(str(flat(p)) for p in parts),
  'numpy.dtype': _dtype,
  'numpy.core.multiarray.scalar': _scalar,
  'numpy._core.multiarray.scalar': _scalar,
  '_codecs.encode': _encode,
}
for _module in ('builtins', '__builtin__'):
  CALLS[f'{_module}.set'] = lambda items=(): set(map(flat, items))
