"""Hand-made `.pth` files: Python's own pickler, with stand-ins for PyTorch's classes."""

import collections
import io
import pickle
import struct
import sys
import types
import zipfile
from unittest import mock

import numpy as np

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
SYSTEM = {'protocol_version': VERSION, 'little_endian': True, 'type_sizes': {'int': 4}}


def _stand_in(module, name):
  return type(name, (), {'__module__': module, '__qualname__': name})


def _modules():
  """Modules `torch` and `torch._utils` with the names that a file of tensors mentions."""
  torch, utils = types.ModuleType('torch'), types.ModuleType('torch._utils')
  for name in ('Float', 'Half', 'BFloat16', 'Long', 'Bool', 'Double'):
    setattr(torch, f'{name}Storage', _stand_in('torch', f'{name}Storage'))
  for name in ('_rebuild_tensor_v2', '_rebuild_parameter'):
    setattr(utils, name, _stand_in('torch._utils', name))
  torch._utils = utils
  return {'torch': torch, 'torch._utils': utils}


class Storage:
  def __init__(self, kind, array):
    self.kind, self.array = kind, array


class Tensor:
  def __init__(self, storage, shape, strides, offset=0):
    self.storage, self.place = storage, (offset, shape, strides)

  def __reduce__(self):
    make = sys.modules['torch._utils']._rebuild_tensor_v2
    hooks = collections.OrderedDict()
    return make, (self.storage, *self.place, False, hooks)


def tensor(array, kind='Float'):
  """A tensor with a storage of its own."""
  array = np.asarray(array, order='C')
  strides = tuple(s // array.itemsize for s in array.strides)
  return Tensor(Storage(kind, array.reshape(-1)), array.shape, strides)


class _Pickler(pickle.Pickler):
  def __init__(self, file):
    super().__init__(file, 2)
    self.storages = {}

  def persistent_id(self, obj):
    if not isinstance(obj, Storage):
      return None
    key = next((k for k, s in self.storages.items() if s is obj), str(len(self.storages)))
    self.storages[key] = obj
    kind = getattr(sys.modules['torch'], f'{obj.kind}Storage')
    return ('storage', kind, key, 'cuda:0', len(obj.array))


def _pickled(content):
  file = io.BytesIO()
  pickler = _Pickler(file)
  with mock.patch.dict(sys.modules, _modules()):
    pickler.dump(content)
  return file.getvalue(), {k: s.array.tobytes() for k, s in pickler.storages.items()}


def save(path, content):
  """As `torch.save` since version 1.6."""
  program, storages = _pickled(content)
  save_program(path, program, storages)
  return path


def save_program(path, program, storages=None):
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('net/data.pkl', program)
    for key, data in (storages or {}).items():
      archive.writestr(f'net/data/{key}', data)
    archive.writestr('net/version', '3\n')


def save_old(path, content):
  """As `torch.save` before version 1.6."""
  file = io.BytesIO()
  pickler = _Pickler(file)
  for part in (MAGIC, VERSION, SYSTEM):
    pickle.dump(part, file, 2)
  with mock.patch.dict(sys.modules, _modules()):
    pickler.dump(content)
  pickle.dump(sorted(pickler.storages), file, 2)
  for _, storage in sorted(pickler.storages.items()):
    file.write(struct.pack('<q', len(storage.array)) + storage.array.tobytes())
  path.write_bytes(file.getvalue())
  return path
