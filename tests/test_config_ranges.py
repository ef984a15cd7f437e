"""Every key of every config has its row in the tables, and what the row rules out is refused."""

import ast
import functools
import itertools
import math
import pathlib
import re

import pytest

from data_pipelines.errors import UserError
from sm3det_jax import config as config_lib
from sm3det_jax.backbones import swin
from sm3det_jax.config import batch_scaling, keys
from sm3det_jax.config.backbones import BACKBONES
from sm3det_jax.config.choices import CHOICES, TEXTS
from sm3det_jax.config.heads import HEADS
from sm3det_jax.config.ranges import RANGES
from sm3det_jax.moe import dispatch
from sm3det_jax.optim import dla

ROOT = pathlib.Path(__file__).parents[1]
STRUCTURED = ('config.workers', 'config.optim.groups', 'config.phases')  # checked by themselves


def configs():
  """The default config, then one for every other head and backbone."""
  yield config_lib.default()
  for kind in HEADS:
    c = config_lib.default()
    c.tasks['sar' if HEADS[kind].box == 'hbb' else 'rgb'].head = config_lib.head(kind)
    yield c
  for kind in BACKBONES:
    c = config_lib.default()
    config_lib.use_backbone(c, kind)
    yield c
  yield config_lib.load(['--config=ringmoe:modalities=opt'])  # for the keys of tasks of images


@functools.cache
def all_leaves():
  """{(address, kind of head or backbone): (config that has it, names in tables, default)}.

  The third task is as the second.
  """
  found = {}
  for c in configs():
    for address, names, _, default in keys.leaves(c, keys.reference_of(c)):
      of = next((k for k in ('backbone', 'head') if f'.{k}.' in f'{address}.'), '')
      kind = '' if not of else c.backbone.type if of == 'backbone' else _head(c, address).type
      if not address.startswith('config.tasks.ifr.'):
        found.setdefault((address, kind), (c, names, default))
  return found


def _head(c, address):
  return c.tasks[address.split('.')[2]].head


def section(c, address):
  """(the section of a copy of `c` that a key is in, its last name, the copy)."""
  c = config_lib.copied(c)
  place, *path, key = c, *address.split('.')[1:]
  for part in path:
    place = place[part]
  return place, key, c


def refused(c, address, value):
  """The line that refuses the value of a key."""
  place, key, c = section(c, address)
  with place.ignore_type():
    place[key] = value
  with pytest.raises(UserError) as error:
    config_lib.check(c)
  assert '\n' not in str(error.value)
  return str(error.value)


def first(value):
  return next(iter(keys._flat(value)), None)


def replaced(value, new):
  """`value` with `new` in the place of its first number or word."""
  if not isinstance(value, tuple):
    return new
  i = next((i for i, part in enumerate(value) if first(part) is not None or part == new), 0)
  return (*value[:i], replaced(value[i] if value else new, new), *value[i + 1 :])


def row(table, names):
  return next((table[name] for name in names if name in table), None)


def test_every_key_has_one_row_and_every_row_a_key():
  used = set()
  for (address, kind), (_, names, default) in all_leaves().items():
    if address in STRUCTURED:
      continue
    rows = [t for t in (CHOICES, RANGES, dict.fromkeys(TEXTS, 1)) if row(t, names) is not None]
    booleans = isinstance(default, bool)
    assert len(rows) + booleans == 1, f'{address} {kind} is in {len(rows)} of the tables'
    used |= {next(n for n in names if n in rows[0])} if rows else set()
  assert used == {*CHOICES, *RANGES, *TEXTS}


def test_numbers_are_whole_where_their_defaults_are():
  for (address, _), (_, names, default) in all_leaves().items():
    limits, number = row(RANGES, names), first(default)
    if limits and number is not None:
      assert isinstance(number, int) == isinstance(limits.low, int), address
      assert limits.holds(number), address


def test_a_value_of_another_kind_is_refused_with_its_key():
  for (address, _), (_, names, default) in all_leaves().items():
    if address in STRUCTURED:
      continue
    wrong = 'x' if row(RANGES, names) else 1 if isinstance(default, bool) else 3.5
    one_or_several = first(default) if isinstance(default, tuple) else (default,)
    for value in (replaced(default, wrong), replaced(default, None), one_or_several):
      with pytest.raises(UserError, match=re.escape(address)):
        keys.check_value(address, names, value, default)


def test_numbers_out_of_their_range_are_refused():
  for (address, _), (c, names, default) in all_leaves().items():
    limits = row(RANGES, names)
    if address in STRUCTURED or not limits:
      continue
    wrong = [math.nan, math.inf]
    wrong += [limits.low - 1] if math.isfinite(limits.low) else []
    wrong += [limits.high + 1] if math.isfinite(limits.high) else []
    wrong += [limits.without] if limits.without is not None else []
    wrong += [True, limits.low + 0.5] if isinstance(limits.low, int) else [True]
    for value in wrong:
      with pytest.raises(UserError, match=re.escape(address)):
        keys.check_value(address, names, replaced(default, value), default)
    assert address in refused(c, address, replaced(default, math.nan))


def typo(word):
  """One letter less, or one more where that is another word."""
  if len(word) <= 3:
    return word + word[-1]
  return word[1:] if word[-1].isdigit() else word[:-1]  # a number tells it from its neighbours


def test_a_typo_in_a_word_is_refused_and_the_word_is_named():
  for (address, _), (c, names, default) in all_leaves().items():
    choices = row(CHOICES, names)
    for word in choices or ():
      message = refused(c, address, replaced(default, typo(word)))
      assert message.startswith(f'{address}={typo(word)!r}: expected '), message
      assert all(repr(choice) in message for choice in choices)
      assert message.endswith(f'did you mean {word!r}?'), message


def test_a_typo_in_a_key_is_refused_and_the_key_is_named():
  for (address, _), (c, _, _) in all_keys().items():
    place, key, c = section(c, address)
    place[typo(key)] = place[key]
    with pytest.raises(UserError) as error:
      config_lib.check(c)
    where, _, near = str(error.value).partition('; near it: ')
    assert where.startswith(f'{address.rpartition(".")[0]}.{typo(key)} is not a known key')
    assert key in near.split(', '), address


def all_keys():
  """`all_leaves` and the sections around them, but for the tasks: their names are the user's."""
  found = dict(all_leaves())
  for (address, kind), value in all_leaves().items():
    *sections, _ = itertools.accumulate(address.split('.'), '{}.{}'.format)
    found |= {(s, kind): value for s in sections[1:] if not re.fullmatch(r'config.tasks.\w+', s)}
  return found


def test_a_key_that_is_missing_is_named():
  for (address, _), (c, _, _) in all_leaves().items():
    place, key, c = section(c, address)
    del place[key]
    with pytest.raises(UserError, match=f'{re.escape(address)}[ =]'):
      config_lib.check(c)


def test_the_words_are_those_that_the_code_knows():
  want = {
    'dla.variant': dla.VARIANTS, 'dla.head_policy': dla.HEAD_POLICIES,
    'dla.shared_policy': dla.SHARED_POLICIES, 'moe.implementation': dispatch.IMPLEMENTATIONS,
    'optim.lr_scaling': tuple(batch_scaling.FACTORS), 'backbone.squad': tuple(swin.SQUAD),
  }  # fmt: skip
  assert {key: CHOICES[key] for key in want} == want


# where a section is handed over as `c` or `config`, or its keys as arguments
ROOMS = {
  'task': ('data_pipelines', 'sm3det_jax/evaluate.py', 'sm3det_jax/inference.py',
           'sm3det_jax/simmim.py', 'sm3det_jax/config/modality.py'),
  'head': ('sm3det_jax/heads',),
  'backbone': ('sm3det_jax/backbones',),
  'neck': ('sm3det_jax/necks',),
  'moe': ('sm3det_jax/backbones',),
  'optim': ('sm3det_jax/optim/optimizer.py', 'sm3det_jax/config/batch_scaling.py'),
  'dla': ('sm3det_jax/optim/dla.py',),
  'dwa': ('sm3det_jax/optim/balance.py',),
  'gradnorm': ('sm3det_jax/optim/balance.py',),
  'simmim': ('sm3det_jax/simmim.py',),
}  # fmt: skip
ARGUMENTS = ('backbone', 'neck', 'moe', 'dla', 'dwa', 'gradnorm')  # handed over so
READERS = ('batch_scaling.py', 'modality.py', 'phases.py')  # in the room of the config itself


@functools.cache
def reads(path):
  """{(owner, name)} of `owner.name` and `owner['name']` in a file, names of arguments without."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Attribute | ast.Subscript):
      part = isinstance(node.value, ast.Subscript | ast.Call)  # config[role], check(config)
      owner = 'config' if part else getattr(node.value, 'attr', getattr(node.value, 'id', ''))
      found.add((owner, getattr(node, 'attr', getattr(getattr(node, 'slice', ''), 'value', ''))))
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
      owner = getattr(node.func.value, 'attr', getattr(node.func.value, 'id', ''))
      found.add((owner, getattr(node.args[0], 'value', '')))  # owner.get('name')
    elif isinstance(node, ast.arg):
      found.add(node.arg)
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
      found.add(node.target.id)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
      found.add(node.value)
  return found


def test_every_key_is_read_by_something():
  """By its section's name, as `config.optim.lr`, or in the section's rooms."""
  files = [*ROOT.glob('sm3det_jax/**/*.py'), *ROOT.glob('data_pipelines/**/*.py')]
  files = [p for p in files if p.parent.name != 'config' or p.name in READERS]
  unread = set()
  for (address, _), (_, names, _) in all_leaves().items():
    *path, key = address.split('.')
    section = names[1].partition('.')[0] if len(path) > 1 else ''
    rooms = tuple(str(ROOT / room) for room in ROOMS.get(section, ()))
    outside = {(path[-1], key)} if section else {('config', key), ('c', key)}
    inside = outside | {('c', key), ('config', key)} | ({key} if section in ARGUMENTS else set())
    wanted = lambda p, i=inside, o=outside, r=rooms: i if r and str(p).startswith(r) else o
    if not any(reads(p) & wanted(p) for p in files):
      unread.add(names[1])
  assert not unread
