"""Interprets a pickle as data: no class is looked up, nothing that a file names is run.

A pickle is a program for a small stack machine. This one knows numbers, texts and plain containers.
Classes and functions are only names to it, and those that its caller did not list are refused.
"""

import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple

LITERALS = (
  'INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'FLOAT', 'BINFLOAT', 'STRING',
  'BINSTRING', 'SHORT_BINSTRING', 'UNICODE', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8',
  'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8', 'BYTEARRAY8',
)  # fmt: skip


class Refused(ValueError):
  """The file asks for something that plain data and tensors do not need."""


class Known(NamedTuple):
  """What a file may name ('module.name'), and what that stands for here."""

  values: Mapping[str, Any]  # plain values
  calls: Mapping[str, Callable]  # functions of ours, called with the file's arguments
  build: Callable[[Any, Any], None]  # (object, its pickled state); raises Refused if it has none
  persistent: Callable[[Any], Any]  # persistent id -> object


class _Name(str):
  """A function of the file: one of `Known.calls`."""


_MARK = object()


def run(stream: BinaryIO, known: Known) -> Any:
  """Interprets the pickle that begins where `stream` stands; leaves it where the pickle ends.

  Raises:
    Refused: an unknown class or function (named in the message), or an instruction for objects.
    Exception: of many kinds, for a damaged pickle.
  """
  machine = _Machine(known)
  for opcode, arg, _ in pickletools.genops(stream):
    if opcode.name == 'STOP':
      return machine.stack.pop()
    if opcode.name in LITERALS:
      machine.stack.append(arg)
      continue
    step = getattr(machine, f'op_{opcode.name.lower()}', None)
    if step is None:
      raise Refused(f'the instruction {opcode.name} {arg or ""} is not one of plain data')
    step(arg)
  raise EOFError('a pickle without its end')


class _Machine:
  """The stack, the memo, and a method for each instruction."""

  def __init__(self, known):
    self.known, self.stack, self.memo = known, [], {}

  def since_mark(self):
    """Takes the items above the last mark, and the mark."""
    items = []
    while (item := self.stack.pop()) is not _MARK:
      items.append(item)
    return items[::-1]

  def target(self, kind):
    """The container on top of the stack, which must be of this very type."""
    if type(self.stack[-1]) is not kind:
      raise TypeError(f'items for a {type(self.stack[-1]).__name__}')
    return self.stack[-1]

  def op_proto(self, _):
    pass

  op_frame = op_proto

  def op_mark(self, _):
    self.stack.append(_MARK)

  def op_pop(self, _):
    self.stack.pop()

  def op_pop_mark(self, _):
    self.since_mark()

  def op_dup(self, _):
    self.stack.append(self.stack[-1])

  def op_memoize(self, _):
    self.memo[len(self.memo)] = self.stack[-1]

  def op_put(self, number):
    self.memo[number] = self.stack[-1]

  op_binput = op_long_binput = op_put

  def op_get(self, number):
    self.stack.append(self.memo[number])

  op_binget = op_long_binget = op_get

  def op_none(self, _):
    self.stack.append(None)

  def op_newtrue(self, _):
    self.stack.append(True)

  def op_newfalse(self, _):
    self.stack.append(False)

  def op_empty_tuple(self, _):
    self.stack.append(())

  def op_tuple1(self, _):
    self._tuple(1)

  def op_tuple2(self, _):
    self._tuple(2)

  def op_tuple3(self, _):
    self._tuple(3)

  def _tuple(self, count):
    self.stack[-count:] = [tuple(self.stack[-count:])]

  def op_tuple(self, _):
    self.stack.append(tuple(self.since_mark()))

  def op_empty_list(self, _):
    self.stack.append([])

  def op_list(self, _):
    self.stack.append(self.since_mark())

  def op_append(self, _):
    item = self.stack.pop()
    self.target(list).append(item)

  def op_appends(self, _):
    items = self.since_mark()
    self.target(list).extend(items)

  def op_empty_dict(self, _):
    self.stack.append({})

  def op_dict(self, _):
    items = self.since_mark()
    self.stack.append({})
    self._set(items)

  def op_setitem(self, _):
    items = self.stack[-2:]
    del self.stack[-2:]
    self._set(items)

  def op_setitems(self, _):
    self._set(self.since_mark())

  def _set(self, items):
    self.target(dict).update(zip(map(flat, items[::2]), items[1::2], strict=True))

  def op_empty_set(self, _):
    self.stack.append(set())

  def op_additems(self, _):
    items = self.since_mark()
    self.target(set).update(map(flat, items))

  def op_frozenset(self, _):
    self.stack.append(frozenset(map(flat, self.since_mark())))

  def op_global(self, arg):
    self._name(*arg.split(' ', 1))

  def op_stack_global(self, _):
    module, name = self.stack[-2:]
    del self.stack[-2:]
    self._name(module, name)

  def _name(self, module, name):
    full = '.'.join((module, name))  # of texts alone
    if full not in self.known.values and full not in self.known.calls:
      raise Refused(f'it holds {full}, which is neither a tensor nor plain data')
    self.stack.append(self.known.values.get(full, _Name(full)))

  def op_reduce(self, _):
    function, arguments = self.stack[-2:]
    if type(function) is not _Name or type(arguments) is not tuple:
      raise Refused(f'it calls a {type(function).__name__}')
    self.stack[-2:] = [self.known.calls[function](*arguments)]

  op_newobj = op_reduce

  def op_build(self, _):
    state = self.stack.pop()
    self.known.build(self.stack[-1], state)

  def op_binpersid(self, _):
    self.stack.append(self.known.persistent(self.stack.pop()))


def flat(key: Any) -> Any:
  """`key` as a dict's key: text or number alone, as the hash of deep tuples exhausts the C stack.

  Raises:
    Refused: it is another kind of object.
  """
  if type(key) not in (str, bytes, int, float, bool, type(None)):
    raise Refused(f'a {type(key).__name__} as key')
  return key
