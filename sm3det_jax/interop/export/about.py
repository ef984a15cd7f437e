"""What an exported program is, as JSON in a file beside it: FILE.json of FILE."""

import hashlib
import importlib.metadata
import json
import pathlib

import jax
from ml_collections import ConfigDict

from data_pipelines.atomic import write_atomically
from data_pipelines.errors import UserError
from sm3det_jax import __version__
from sm3det_jax.config import files

KIND = 'sm3det_jax export'
VERSION = 1  # of the JSON; one more where an older reader would read it wrongly
# what a detection asks of a task's config
KEYS = ('kind', 'classes', 'bands', 'mean', 'std', 'input', 'size', 'test')
DIGEST = 'digest'  # the key of the SHA-256 of all the others
NMS = ('score_threshold', 'nms_iou', 'max_detections')  # what a head's last NMS does
INPUTS = {'images': 'float32', 'shapes': 'int32'}
OUTPUTS = ('boxes', 'scores', 'labels', 'valid')


def place(file: pathlib.Path) -> pathlib.Path:
  """Where the JSON of an exported file lies."""
  return file.with_name(f'{file.name}.json')


def write(file: pathlib.Path, data: bytes, config: ConfigDict, task: str, **form) -> None:
  """Writes an exported program and, when it is there, its JSON.

  Args:
    file: of the program; its folder exists.
    data: its content.
    config: of the model.
    task: that the program is of.
    **form: how it was made: `format`, `batch` and so on.
  """
  c = config.tasks[task]
  content = {
    'what': KIND,
    'version': VERSION,
    **form,
    'task': task,
    **{key: c.to_dict()[key] for key in KEYS if key in c},
    'strides': c.head.strides,
    'nms': {key: c.head[key] for key in NMS},
    'pixels': INPUTS['images'],
    'inputs': INPUTS,
    'outputs': OUTPUTS,
    'sm3det_jax': __version__,
    'jax': jax.__version__,
    'jaxlib': importlib.metadata.version('jaxlib'),
    'sha256': hashlib.sha256(data).hexdigest(),
  }
  write_atomically(file, data)
  sealed = content | {DIGEST: digest(content)}
  write_atomically(place(file), json.dumps(sealed, indent=2) + '\n')


def digest(content: dict) -> str:
  """SHA-256 of the JSON's values, however they are spaced, without that of itself."""
  rest = {key: value for key, value in content.items() if key != DIGEST}
  return hashlib.sha256(json.dumps(rest).encode()).hexdigest()


def read(file: pathlib.Path) -> tuple[bytes, dict]:
  """(content of an exported file, its JSON).

  Raises:
    FileNotFoundError: no such file.
    UserError: its JSON is missing, damaged, of another file or newer than this.
  """
  data, beside = file.read_bytes(), place(file)
  if not beside.exists():
    raise UserError(f'{beside} is missing; it belongs to {file.name}: copy both')
  try:
    content = json.loads(beside.read_bytes())
    known = content['what'] == KIND and content['version'] >= 1
  except (ValueError, KeyError, TypeError, RecursionError):
    known = False
  if known and content['version'] > VERSION:
    raise UserError(
      f'{file} was exported by sm3det_jax {content.get("sm3det_jax")}, whose exports this version '
      f'({__version__}) does not know: update it, or export anew with this one'
    )
  if not known or content.get(DIGEST) != digest(content):
    raise UserError(
      f'{beside} is damaged, changed or not of `sm3det export`: copy it anew, or export anew'
    )
  if hashlib.sha256(data).hexdigest() != content['sha256']:
    raise UserError(
      f'{file} is damaged, or {beside.name} is of another file (SHA-256): copy both anew'
    )
  return data, content


def config_of(content: dict) -> ConfigDict:
  """The part of the model's config that detection asks for, out of the JSON."""
  task = {key: content[key] for key in KEYS if key in content}
  # the program's labels are the task's own, and it shares its backbone with no other
  alone = {'label_space': 'per_task', 'backbone': {'stems': 'per_task'}}
  return files.of_json(alone | {'tasks': {content['task']: task}})
