"""Files of weights: what is read of them, and that nothing that they ask for is ever done."""

import argparse
import collections
import json
import os
import pickle
import struct
import subprocess
import zipfile

import ml_dtypes
import numpy as np
import pth
import pytest

from data_pipelines.errors import UserError
from sm3det_jax.interop.files import state_files, unpickle

SAVE = {'zip': pth.save, 'old': pth.save_old}
BASE = np.arange(24, dtype=np.float32)


def checkpoint():
  """What a training of mmcv saves, with every kind of tensor that there may be."""
  shared = pth.Storage('Float', BASE)
  state = collections.OrderedDict(
    whole=pth.Tensor(shared, (4, 6), (6, 1)),
    transposed=pth.Tensor(shared, (6, 4), (1, 6)),
    part=pth.Tensor(shared, (2, 3), (6, 2), 7),
    expanded=pth.Tensor(shared, (5, 2), (0, 1), 3),
    half=pth.tensor(np.asarray([0.5, -2], np.float16), 'Half'),
    brain=pth.tensor(np.asarray([[1.5, -3]], ml_dtypes.bfloat16), 'BFloat16'),
    count=pth.tensor(np.asarray(7), 'Long'),
    flags=pth.tensor(np.asarray([True, False]), 'Bool'),
    empty=pth.tensor(np.zeros((0, 3), np.float32)),
  )
  state._metadata = collections.OrderedDict({'': {'version': 1}})
  meta = {
    'config': 'model = dict()', 'CLASSES': ('ship', 'car'), 'epoch': 12, 'seed': None,
    'wide': 2**70, 'best': np.float64(0.25), 'bytes': b'\xff\x00', 'names': {'a', 'b'},
    'steps': [1, -2, 3.5, True],
  }  # fmt: skip
  arguments = argparse.Namespace(lr=0.1, model='net')
  return {'meta': meta, 'args': arguments, 'state_dict': state}


@pytest.mark.parametrize('form', SAVE)
def test_tensors_and_plain_data(form, tmp_path):
  found = unpickle.load(SAVE[form](tmp_path / 'a.pth', checkpoint()))
  assert found['meta'] == checkpoint()['meta']
  assert type(found['meta']['best']) is np.float64
  assert found['args'] == {'lr': 0.1, 'model': 'net'}
  state = found['state_dict']
  np.testing.assert_array_equal(state['whole'], BASE.reshape(4, 6))
  np.testing.assert_array_equal(state['transposed'], BASE.reshape(4, 6).T)
  np.testing.assert_array_equal(state['part'], [[7, 9, 11], [13, 15, 17]])
  np.testing.assert_array_equal(state['expanded'], [[3, 4]] * 5)
  assert np.shares_memory(state['whole'], state['transposed'])
  assert state['half'].dtype == np.float16 and state['half'].tolist() == [0.5, -2]
  assert state['brain'].dtype == ml_dtypes.bfloat16 and state['brain'].tolist() == [[1.5, -3]]
  assert state['count'].shape == () and state['count'] == 7
  assert state['flags'].tolist() == [True, False]
  assert state['empty'].shape == (0, 3)
  assert list(state_files.read(tmp_path / 'a.pth')) == list(state)


class Evil:
  """Pickled as the call of any function with any arguments."""

  def __init__(self, function, *arguments, state=None):
    self.parts = (function, arguments, state) if state else (function, arguments)

  def __reduce__(self):
    return self.parts


MARKER = 'was_here'
COMMAND = f'touch {MARKER}'
OPEN = f"open('{MARKER}', 'w')"
ATTACKS = {  # by the name that must stand in the message
  'posix.system': Evil(os.system, COMMAND),
  'builtins.eval': Evil(eval, OPEN),
  'builtins.exec': Evil(exec, OPEN),
  'builtins.getattr': Evil(getattr, Evil(__import__, 'os'), 'system'),
  'commands.Popen': Evil(subprocess.Popen, ['touch', MARKER]),
  'io.open': Evil(open, MARKER, 'w'),
  'builtins.list': Evil(list, Evil(map, os.system, [COMMAND])),
  'pickle.loads': Evil(pickle.loads, pickle.dumps(Evil(os.system, COMMAND), 2)),
  'test_unpickle.Evil': Evil(Evil, 1),
  'collections.defaultdict': collections.defaultdict(list),
}


@pytest.mark.parametrize('form', SAVE)
@pytest.mark.parametrize('name', ATTACKS)
def test_other_classes_are_refused_by_name(name, form, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  SAVE[form](tmp_path / 'a.pth', checkpoint() | {'extra': [ATTACKS[name]]})
  name = name.replace('builtins', '__builtin__')  # as protocol 2 spells it
  with pytest.raises(ValueError, match=rf'a\.pth is refused.* it holds _?{name}, which'):
    unpickle.load(tmp_path / 'a.pth')
  assert not (tmp_path / MARKER).exists()


PROGRAMS = {  # instructions that a pickler does not write by itself
  'posix.system': b'cposix\nsystem\n(Vtouch was_here\ntR.',
  'os.system': b'\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0etouch was_here\x85R.',
  'INST': b'(Vtouch was_here\nios\nsystem\n.',
  'OBJ': b'(ccollections\nOrderedDict\nVtouch was_here\no.',
  'EXT1': b'\x82\x01.',
  'NEXT_BUFFER': b'\x97.',
  'PERSID': b'Pstorage\n.',
  'torch.storage._load_from_bytes': b'ctorch.storage\n_load_from_bytes\n(B\x00\x00\x00\x00tR.',
  'numpy.core.multiarray._reconstruct': b'cnumpy.core.multiarray\n_reconstruct\n.',
  'numpy object': b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR.",
  'attributes': b'ctorch._utils\n_rebuild_tensor_v2\n}(V__code__\nI1\nub.',
  'calls a list': b'](tR.',
  'calls a dtype|calls a Float32DType': b'ctorch\nfloat32\n(tR.',
  'no storage': b"(S'module'\nI1\nI1\nI1\nI1\ntQ.",
  'a tuple as key': b'}(I1\ntI2\ns.',
  'torch._utils._rebuild_tensor_v2.__globals__': (
    b'\x80\x04\x8c\x0ctorch._utils\x8c\x1e_rebuild_tensor_v2.__globals__\x93.'
  ),
}


@pytest.mark.parametrize('name', PROGRAMS)
def test_forged_programs_do_nothing(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  pth.save_program(tmp_path / 'a.pth', PROGRAMS[name])
  with pytest.raises(ValueError, match=rf'a\.pth is .*({name})'):
    unpickle.load(tmp_path / 'a.pth')
  assert not (tmp_path / MARKER).exists()


def test_deep_and_wide_objects_harm_nobody(tmp_path):
  deep = b')' + b'\x85' * 150_000  # whose hash would exhaust the C stack
  wide = b']' + b''.join(
    b'q%c](h%ch%ce' % (i, i, i) for i in range(60)
  )  # whose text has 2^60 parts
  for program in (
    b'}' + deep + b'I1\ns.',
    b'(Vstorage\nctorch\nFloatStorage\n' + deep + b'Vcpu\nI1\ntQ.',
    b'\x80\x04' + wide + b'\x8c\x01a\x93.',
    b'ctorch\ndevice\n(' + wide + b'tR.',
    b'cnumpy\ndtype\n(' + wide + b'tR.',
  ):
    pth.save_program(tmp_path / 'a.pth', program)
    with pytest.raises(ValueError, match=r'a\.pth is '):
      unpickle.load(tmp_path / 'a.pth')


@pytest.mark.parametrize('form', SAVE)
@pytest.mark.parametrize(
  'shape, strides, offset',
  [
    ((4, 6), (6, 1), 1),
    ((25,), (1,), 0),
    ((2,), (-1,), 3),
    ((-2, 3), (1, 1), 0),
    ((3,), (2**62,), 0),
  ],
)
def test_a_tensor_stays_within_its_storage(shape, strides, offset, form, tmp_path):
  tensor = pth.Tensor(pth.Storage('Float', BASE), shape, strides, offset)
  SAVE[form](tmp_path / 'a.pth', {'w': tensor})
  with pytest.raises(ValueError, match=r'a\.pth is no state dict .*: a tensor'):
    unpickle.load(tmp_path / 'a.pth')


@pytest.mark.parametrize('form', SAVE)
def test_damage_is_one_error_that_names_the_file(form, tmp_path):
  content = SAVE[form](tmp_path / 'whole.pth', checkpoint()).read_bytes()
  torn = tmp_path / 'torn.pth'
  for length in range(0, len(content) - 1, 41):
    torn.write_bytes(content[:length])
    with pytest.raises(ValueError, match=r'torn\.pth is (no state dict|refused)'):
      unpickle.load(torn)
  rng = np.random.default_rng(0)
  for _ in range(100):
    changed = bytearray(content)
    for at in rng.integers(0, len(content), 3):
      changed[at] = rng.integers(256)
    torn.write_bytes(changed)
    try:
      unpickle.load(torn)  # a changed number may well be a number
    except ValueError as error:
      assert 'torn.pth is ' in str(error)


def test_a_storage_of_another_length_is_noticed(tmp_path):
  file = pth.save_old(tmp_path / 'a.pth', {'w': pth.tensor(BASE)})
  content = file.read_bytes()
  file.write_bytes(content[: -BASE.nbytes - 8] + struct.pack('<q', 23) + content[-BASE.nbytes :])
  with pytest.raises(ValueError, match='storage 0 is not whole'):
    unpickle.load(file)


def test_big_endian_files_are_refused(tmp_path, monkeypatch):
  monkeypatch.setitem(pth.SYSTEM, 'little_endian', False)
  with pytest.raises(ValueError, match='big-endian'):
    unpickle.load(pth.save_old(tmp_path / 'a.pth', checkpoint()))


def arrays():
  return {
    'a.weight': BASE.reshape(2, 3, 4),
    'b': np.asarray(-1, np.int64),
    'c': np.asarray([[1.5], [2]], ml_dtypes.bfloat16),
    'd': np.zeros((0, 2), np.float16),
    'e': BASE.reshape(4, 6).T,
  }


@pytest.mark.parametrize('suffix', ['pth', 'safetensors', 'npz'])
def test_what_is_written_is_read_again(suffix, tmp_path):
  wanted = arrays()
  if suffix == 'npz':
    del wanted['c']  # numpy's files know no bfloat16
  path = tmp_path / 'new' / f'a.{suffix}'
  state_files.write(path, wanted, ('ship', 'car'))
  found = state_files.read(path)
  assert set(found) == set(wanted)
  for name, array in wanted.items():
    assert found[name].dtype == array.dtype
    np.testing.assert_array_equal(found[name], array)
  if suffix == 'pth':
    assert unpickle.load(path)['meta'] == {'CLASSES': ('ship', 'car')}


def test_wrappings_are_taken_off(tmp_path):
  weight = pth.tensor(BASE)
  for content in (
    {'w': weight},
    {'model': {'w': weight}, 'epoch': 3},
    {'state_dict': {'module.w': weight}, 'optimizer': {'state': {}}},
  ):
    state = state_files.read(pth.save(tmp_path / 'a.pth', content))
    np.testing.assert_array_equal(state['w'], BASE)
  with pytest.raises(ValueError, match='holds no state dict, but epoch, name'):
    state_files.read(pth.save(tmp_path / 'a.pth', {'epoch': 3, 'name': 'x'}))
  with pytest.raises(ValueError, match='expected a file ending in'):
    state_files.write(tmp_path / 'a.bin', arrays(), ())
  with pytest.raises(FileNotFoundError):
    state_files.read(tmp_path / 'none.pth')


@pytest.mark.parametrize('suffix', ['.pth', '.npz', '.safetensors'])
def test_what_is_no_state_dict_is_told_without_the_words_of_libraries(suffix, tmp_path):
  file, beginning = tmp_path / f'a{suffix}', f'{tmp_path}/a{suffix} is no state dict (.pth, '
  with zipfile.ZipFile(tmp_path / 'zip', 'w') as archive:
    archive.writestr('notes.txt', 'no array')
  other = (tmp_path / 'zip').read_bytes()
  for content in (
    b'',
    b'hello',
    b'some notes\n',
    other,
    b'\x80\x02}.',
    b'PK\x03\x04',
    b'(((',
    b'I',
  ):
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
      state_files.read(file)
    line = str(error.value)
    if 'holds no state dict, but' not in line:
      assert line.startswith(beginning), line
      words = 'it is empty', 'it is damaged, cut short or', 'its zip archive is', 'its first number'
      assert line.partition('): ')[2].startswith(words)
  file.unlink()
  file.mkdir()
  with pytest.raises(IsADirectoryError):
    state_files.read(file)


def test_npz_with_objects_is_refused(tmp_path):
  np.savez(tmp_path / 'a.npz', w=np.asarray([Evil(os.system, COMMAND)], object))
  with pytest.raises(ValueError, match=r'a\.npz is '):
    state_files.read(tmp_path / 'a.npz')


def _safetensors(header, data):
  text = json.dumps(header).encode()
  return struct.pack('<Q', len(text)) + text + data


ENTRY = {'dtype': 'F32', 'shape': [2, 3], 'data_offsets': [0, 24]}


@pytest.mark.parametrize(
  'content',
  [
    b'',
    b'\xff' * 40,
    struct.pack('<Q', 3) + b'[1]',
    _safetensors({'w': ENTRY}, bytes(20)),
    _safetensors({'w': ENTRY}, bytes(28)),
    _safetensors({'w': ENTRY | {'shape': [2, 4]}}, bytes(24)),
    _safetensors({'w': ENTRY | {'shape': [-2, -3]}}, bytes(24)),
    _safetensors({'w': ENTRY | {'dtype': 'F33'}}, bytes(24)),
    _safetensors({'w': ENTRY | {'data_offsets': [4, 28]}}, bytes(28)),
    _safetensors({'w': ENTRY, 'v': ENTRY}, bytes(24)),
    _safetensors({'w': {'dtype': 'F32'}}, bytes(24)),
  ],
)
def test_safetensors_that_contradict_themselves(content, tmp_path):
  (tmp_path / 'a.safetensors').write_bytes(content)
  with pytest.raises(ValueError, match=r'a\.safetensors is no state dict .*it is (empty|damaged)'):
    state_files.read(tmp_path / 'a.safetensors')
  (tmp_path / 'a.safetensors').write_bytes(
    _safetensors({'w': ENTRY, '__metadata__': {}}, bytes(24))
  )
  assert state_files.read(tmp_path / 'a.safetensors')['w'].shape == (2, 3)
