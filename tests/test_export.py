"""Exported models: the same detections, without the model's code; what is damaged is one line."""

import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys

import exported
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from data_pipelines.errors import UserError
from sm3det_jax import Detector, checkpoint, cli
from sm3det_jax.detector import build
from sm3det_jax.inference import detect_step
from sm3det_jax.interop.export import about, reader, stablehlo, weights

ROOT = pathlib.Path(__file__).parents[1]
TASK = 'retinanet'
SCORE = 0.01
# modules that an exported model does without
BLOCKED = (
  'flax', 'optax', 'orbax', 'tensorflow_datasets', 'sm3det_jax.heads', 'sm3det_jax.backbones',
  'sm3det_jax.detector', 'sm3det_jax.checkpoint', 'sm3det_jax.moe', 'sm3det_jax.geometry',
)  # fmt: skip
WITHOUT = """
import sys

class Blocked:
  def find_spec(self, name, path=None, target=None):
    if name.startswith(tuple(sys.argv[4].split(','))):
      raise ImportError(f'{name} is blocked')

sys.meta_path.insert(0, Blocked())
import numpy as np
from sm3det_jax import Detector

detector = Detector.from_export(sys.argv[1])
image = np.load(sys.argv[2])
found = detector.predict(image, sys.argv[5], 0.01)
found.save(sys.argv[3] + '.json')
detector.plot(image, found, sys.argv[5], sys.argv[3] + '.png')
np.savez(sys.argv[3], **{k: found[k] for k in ('boxes', 'scores', 'labels')})
"""


def run(*arguments):
  return cli.main(list(map(str, arguments)))


@pytest.fixture(scope='module')
def model():
  return exported.model((TASK, 'gfl'), 'joint')


@pytest.fixture(scope='module')
def weight_file(model, tmp_path_factory):
  file = tmp_path_factory.mktemp('weights') / 'model.safetensors'
  file.write_bytes(weights.serialised(*model))
  return file


@pytest.fixture(scope='module')
def file(weight_file):
  """An export for any number of images."""
  out = weight_file.with_name('new') / 'model.stablehlo'
  form = f'--task={TASK}', '--format=stablehlo', '--batch=any'
  assert run('export', f'--workdir={weight_file}', *form, f'--out={out}') == 0
  return out


@pytest.fixture(scope='module')
def detector(model):
  return Detector(*model)


def image(height, width):
  return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


def assert_same(found, wanted):
  assert len(found['scores']) == len(wanted) > 1
  np.testing.assert_array_equal(found['labels'], wanted['labels'])
  for key in ('boxes', 'scores'):
    largest = np.abs(wanted[key]).max()
    np.testing.assert_allclose(found[key], wanted[key], atol=1e-4 * largest, rtol=0)


def test_an_export_detects_as_the_model(file, detector):
  of_file = Detector.from_export(file)
  assert of_file.tasks == (TASK,)
  wanted = detector.predict(image(150, 90), TASK, SCORE)  # of several windows
  found = of_file.predict(image(150, 90), TASK, SCORE)
  assert_same(found, wanted)
  assert found.names == wanted.names and set(found.names) <= {'plane', TASK, f'{TASK}s'}


def test_it_needs_none_of_the_models_code(file, detector, tmp_path):
  np.save(tmp_path / 'image.npy', image(150, 90))
  given = file, tmp_path / 'image.npy', tmp_path / 'found', ','.join(BLOCKED), TASK
  paths = {'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
  done = subprocess.run(
    [sys.executable, '-c', WITHOUT, *map(str, given)],
    env={**os.environ, **paths}, capture_output=True, text=True,
  )  # fmt: skip
  assert not done.returncode, done.stderr
  with np.load(tmp_path / 'found.npz') as found:
    assert_same(dict(found), detector.predict(image(150, 90), TASK, SCORE))
  assert (tmp_path / 'found.png').exists() and (tmp_path / 'found.json').exists()


def test_the_json_says_what_the_file_is(file, model):
  config, content = model[0].tasks[TASK], json.loads(about.place(file).read_text())
  for key in ('kind', 'classes', 'bands', 'mean', 'std', 'size'):
    wanted = config[key]
    assert content[key] == (list(wanted) if isinstance(wanted, tuple) else wanted)
  assert content['strides'] == list(config.head.strides)
  assert content['nms'] == {'score_threshold': 0.001, 'nms_iou': 0.5, 'max_detections': 20}
  assert (content['batch'], content['pixels'], content['jax']) == (
    'any',
    'float32',
    jax.__version__,
  )
  program = jax.export.deserialize(bytearray(file.read_bytes()))
  assert program.platforms == ('cpu', 'cuda', 'tpu') == tuple(content['platforms'])
  assert set(content['inputs']) == {'images', 'shapes'}
  # of the other task's head, which is larger than the rest, nothing is inside
  assert len(file.read_bytes()) < sum(a.nbytes for a in jax.tree.leaves(model[1])) + 400_000


def other_json(file, **changes):
  """One that `export` may have written, with other values."""
  place = about.place(file)
  content = json.loads(place.read_text()) | changes
  place.write_text(json.dumps(content | {about.DIGEST: about.digest(content)}))


def less(file):
  content = json.loads(about.place(file).read_text())
  return json.dumps({key: content[key] for key in content if key != 'platforms'})


def test_any_changed_value_of_the_json_is_one_line(file, tmp_path):
  place, content = about.place(tmp_path / 'x'), json.loads(about.place(file).read_text())
  (tmp_path / 'x').write_bytes(file.read_bytes())
  place.write_text(json.dumps(content))  # spaced otherwise
  assert about.read(tmp_path / 'x')[1] == content
  without = lambda key: {k: v for k, v in content.items() if k != key}
  for key in content:
    for changed in (without(key), content | {key: None}, content | {key: [content[key]]}):
      place.write_text(json.dumps(changed))
      with pytest.raises(UserError, match='x.json is damaged, changed or not of.*copy it anew'):
        about.read(tmp_path / 'x')


def of_onnx(file):
  about.place(file).write_text(less(file))
  other_json(file, format='onnx')


def no_program(file):
  file.write_bytes(b'no program')
  digest = hashlib.sha256(b'no program').hexdigest()
  other_json(file, sha256=digest)


DAMAGES = {
  'truncated': (lambda f: f.write_bytes(f.read_bytes()[:-9]), 'is damaged, or .* is of another'),
  'other bytes': (lambda f: f.write_bytes(f.read_bytes()[::-1]), 'is damaged, or .*is of another'),
  'no JSON': (lambda f: about.place(f).unlink(), 'json is missing'),
  'no JSON inside': (lambda f: about.place(f).write_text('{'), 'json is damaged, changed or'),
  'other JSON': (lambda f: about.place(f).write_text('[1]'), 'json is damaged, changed or'),
  'less in the JSON': (lambda f: about.place(f).write_text(less(f)), 'json is damaged, changed or'),
  'of another file': (lambda f: other_json(f, sha256='00'), 'is of another file'),
  'newer': (lambda f: other_json(f, version=99, sm3det_jax='9.9', size=None), 'by sm3det_jax 9.9'),
  'other format': (of_onnx, 'of format onnx; a stablehlo export is needed'),
  'platform': (lambda f: other_json(f, platforms=['tpu']), 'for tpu, and this is cpu'),
  'no program': (no_program, 'export it anew'),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_export_is_one_line(damage, file, tmp_path):
  copy = tmp_path / file.name
  for path in (file, about.place(file)):
    (tmp_path / path.name).write_bytes(path.read_bytes())
  change, words = DAMAGES[damage]
  change(copy)
  with pytest.raises(UserError, match=words) as error:
    Detector.from_export(copy)
  assert '\n' not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
  with pytest.raises(FileNotFoundError, match='gone'):
    Detector.from_export(tmp_path / 'gone')


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    (['--task=gfl', '--format=torch'], "invalid choice: 'torch'"),
    (['--format=stablehlo'], '--task missing'),
    (['--format=safetensors', '--batch=2'], '--batch says nothing'),
    (['--format=safetensors', '--platforms=cpu'], '--platforms says nothing'),
    (['--task=gfl', '--format=stablehlo', '--cut=boxes'], '--cut says nothing'),
    (['--task=gfl', '--format=onnx', '--batch=any'], 'fixed number'),
    (['--task=gfl', '--format=onnx'], 'jax2onnx.* is not here.*docs/export.md'),
    (['--task=ir', '--format=stablehlo'], "unknown task 'ir'.* gfl"),
    (['--task=gfl', '--format=stablehlo', '--batch=0'], "'0': expected"),
    (['--task=gfl', '--format=stablehlo', '--platforms=npu'], "platform 'npu'"),
    (['--task=gfl', '--format=stablehlo', '--out=.'], 'is a folder'),
    (['--task=gfl', '--format=stablehlo', '--out=/proc/e'], '/proc: no file can be made in this'),
  ],
)
def test_what_cannot_be_exported_is_one_line(
  arguments, words, weight_file, tmp_path, capsys, monkeypatch
):
  monkeypatch.setitem(sys.modules, 'jax2onnx', None)  # as if it were not installed
  out = f'--out={tmp_path / "new" / "file"}'
  try:
    status = run('export', f'--workdir={weight_file}', out, *arguments)
  except SystemExit as exit:  # argparse's
    status = exit.code
  error = capsys.readouterr().err
  assert status == 2 and error.count('\n') == 1
  assert re.search(words, error)
  assert not list(tmp_path.rglob('file*'))


def test_safetensors_are_the_runs_parameters_bit_by_bit(model, tmp_path):
  config, variables = model
  checkpoint.save_weights(tmp_path / 'run', config, jax.tree.map(jnp.asarray, variables))
  out = tmp_path / 'a.safetensors'
  assert run('export', f'--workdir={tmp_path / "run"}', '--format=safetensors', f'--out={out}') == 0
  arrays = safetensors.numpy.load_file(out)
  leaves = jax.tree_util.tree_leaves_with_path(variables)
  assert set(arrays) == {'/'.join(key.key for key in path) for path, _ in leaves}
  for path, leaf in leaves:
    array = arrays['/'.join(key.key for key in path)]
    assert array.dtype == leaf.dtype and array.tobytes() == leaf.tobytes()
  there, read = weights.read(out)
  assert there.to_dict() == checkpoint.load_config(tmp_path / 'run').to_dict()
  jax.tree.map(np.testing.assert_array_equal, read, variables)
  content = out.read_bytes()
  for damaged in (content[:-9], content[9:], safetensors.numpy.save({'a': np.zeros(1)})):
    out.write_bytes(damaged)
    with pytest.raises(UserError, match='a.safetensors is damaged or not of'):
      weights.read(out)


def test_a_fixed_batch_takes_any_number_of_images():
  asked = []

  def call(images, shapes):
    asked.append(images.shape)
    return {k: jnp.asarray(images[:, 0, 0, 0]) + i for i, k in enumerate(about.OUTPUTS)}

  step = reader._step(call, 4)
  images = np.arange(6, dtype=np.uint16)[:, None, None, None]
  found = step({'sha256': jnp.zeros(32)}, images, np.ones((6, 2), np.int32))
  assert asked == [(4, 1, 1, 1)] * 2
  np.testing.assert_array_equal(found.scores, np.arange(6) + 1)


@pytest.fixture(scope='module')
def all_heads():
  return exported.model()


@pytest.mark.slow
@pytest.mark.drawn(7)
@pytest.mark.parametrize('kind', exported.KINDS)
def test_every_head_as_its_model(kind, all_heads):
  config, variables = all_heads
  pixels, shapes = exported.images(2)
  data = stablehlo.serialised(config, variables, kind, batch=2)
  found = jax.device_get(jax.export.deserialize(bytearray(data)).call(pixels, shapes))
  wanted = jax.device_get(detect_step(build(config), config, kind)(variables, pixels, shapes))
  assert exported.difference(found, wanted._asdict()) < 1e-4
