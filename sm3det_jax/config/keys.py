"""Every key of a config by itself: known, of its type, one of its choices or in its range."""

import difflib
import re
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.errors import UserError
from sm3det_jax.config import defaults
from sm3det_jax.config.choices import CHOICES, TEXTS, refuse
from sm3det_jax.config.heads import HEADS
from sm3det_jax.config.ranges import ANY, RANGES

TYPES = {bool: 'True or False', int: 'a whole number', str: 'text'}


def check(config: ConfigDict) -> None:
  """Raises UserError for a key or value that cannot be, whatever the other keys are.

  That is a key that the defaults lack (its neighbours are named) or that `config` lacks, a value of
  another type than its default, or one that `CHOICES` or `RANGES` rule out.
  """
  for address, names, value, default in leaves(config, reference_of(config)):
    check_value(address, names, value, default)


def reference_of(config: ConfigDict) -> dict:
  """All keys that a config of these kinds of tasks, heads and backbone has, with their defaults."""
  refuse_kind('config.backbone.type', config, 'backbone.type')
  reference = dict(defaults.default().items())
  reference['backbone'] = defaults.backbone(config.backbone.type)[0]
  reference['tasks'] = {}
  for name, task in config.tasks.items():
    if not re.fullmatch(r'[\w-]+', name) or name == 'moe':
      raise UserError(f"config.tasks: {name!r} is no name: letters, digits, _ and -, and not 'moe'")
    if not isinstance(task, ConfigDict):
      raise UserError(f'config.tasks.{name}={task!r}: expected keys, as config.task makes them')
    if 'box' in task:
      raise UserError(f'config.tasks.{name}.box={task.box!r}: the key is called `kind` now')
    refuse_kind(f'config.tasks.{name}.kind', task, 'kind')
    own = reference['tasks'][name] = dict(defaults.task(task.kind, '').items())
    if 'head' in own:
      refuse_kind(f'config.tasks.{name}.head.type', task, 'head.type')
      own['head'] = HEADS[task.head.type].defaults()
  return reference


def refuse_kind(address: str, config: ConfigDict, key: str) -> None:
  """Raises UserError if what decides which keys there are is itself missing or unknown."""
  value = config
  for part in key.split('.'):
    value = value.get(part) if isinstance(value, ConfigDict) else None
  refuse(address, value, CHOICES[names_of(address)[0]])


def leaves(config: Any, reference: Any, where: str = 'config') -> Iterator[tuple]:
  """Yields every value: (its address, its names in the tables, it, its default).

  Raises:
    UserError: a key that only one of the two has, or a value in the place of a section.
  """
  for key in config:
    if key not in reference:
      near = difflib.get_close_matches(key, list(reference), 3) or sorted(reference)
      of = f' of {reference["type"]!r}' if isinstance(reference.get('type'), str) else ''
      raise UserError(f'{where}.{key} is not a known key{of}; near it: {", ".join(near)}')
  for key, default in reference.items():
    address, section = f'{where}.{key}', isinstance(default, ConfigDict | dict)
    if key not in config:
      raise UserError(f'{address} is missing' + ('' if section else f'; by default {default!r}'))
    value = config[key]
    if section != isinstance(value, ConfigDict | dict):
      raise UserError(f'{address}={value!r}: expected {"keys" if section else "a value"}')
    if section:
      yield from leaves(value, default, address)
    else:
      yield address, names_of(address), value, default


def names_of(address: str) -> tuple[str, str]:
  """What tables may call a key: 'tile.size', 'task.size' for 'config.tasks.sar.train.tile.size'."""
  parts = address.split('.')[1:]
  if parts[0] == 'tasks':
    parts = parts[2:] if parts[2] == 'head' else ['task', *parts[2:]]
  return '.'.join(parts[-2:]), '.'.join(dict.fromkeys((parts[0], parts[-1])))


def check_value(address: str, names: tuple[str, ...], value: Any, default: Any) -> None:
  """Raises UserError unless a value is what its row in a table says, or else of its type."""
  if address == 'config.workers':
    if value != 'auto' and (isinstance(value, bool) or not str(value).isdecimal()):
      raise UserError(f"{address}={value!r}: expected 'auto' or a number of processes")
    return
  several = isinstance(value, tuple | list)
  if isinstance(default, tuple) != several:
    raise UserError(f'{address}={value!r}: expected {"one value" if several else "several, in ()"}')
  parts, types = list(_flat(value)), {type(part) for part in _flat(default)}
  choices, limits = _row(CHOICES, names), _row(RANGES, names) or (ANY if float in types else None)
  if choices:
    for part in parts:
      refuse(address, part, choices)
  elif limits:
    if limits.length and len(value) != limits.length:
      raise UserError(f'{address}={value!r}: expected {limits.length} numbers')
    if not all(map(limits.holds, parts)):
      raise UserError(f'{address}={value!r}: expected {"each " if several else ""}{limits}')
  else:
    types = {str} if set(names) & set(TEXTS) else types
    if types and not {type(part) for part in parts} <= types:
      kinds = ' or '.join(TYPES.get(t, t.__name__) for t in types)
      raise UserError(f'{address}={value!r}: expected {kinds}')


def _row(table, names):
  return next((table[name] for name in names if name in table), None)


def _flat(value):
  if isinstance(value, tuple | list):
    for part in value:
      yield from _flat(part)
  else:
    yield value
