"""What the text of a compiled program says: collectives, traffic of HBM."""

import math
import re

SENT = {  # bytes that a device sends; v = bytes of the result on it, p = devices that take part
  'all-reduce': lambda v, p: 2 * v * (p - 1) / p,
  'all-gather': lambda v, p: v * (p - 1) / p,
  'reduce-scatter': lambda v, p: v * (p - 1),
  'all-to-all': lambda v, p: v * (p - 1) / p,
  'ragged-all-to-all': lambda v, p: v * (p - 1) / p,  # at most: v is the buffer
  'collective-permute': lambda v, p: v,
}
BYTES = {'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's16': 2, 'u16': 2, 'f64': 8, 's64': 8}
OPERATION = re.compile(rf' = (.*?) ({"|".join(sorted(SENT, key=len, reverse=True))})(-start)?\(')
# how libtpu writes a reduce-scatter: a computation of an all-reduce and the cut of its result
SCATTER = re.compile(r'%all-reduce-scatter[\w.]* \(.*\) -> (.*) \{')
INSTRUCTION = re.compile(r'%(\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(?:, |$)')
CALL = re.compile(r'\b(body|condition|calls|to_apply)=%([\w.-]+)')
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
FREE = {  # instructions that move nothing themselves
  'after-all', 'bitcast', 'call', 'conditional', 'constant', 'get-tuple-element', 'parameter',
  'tuple', 'while',
}  # fmt: skip


def collectives(hlo: str) -> list[dict]:
  """Collectives of a compiled program's text, those alike added up.

  In a loop they count as often as it runs, where the program says it, else once.

  Returns:
    [{'op', 'devices' that take part, 'count', 'bytes' of the results, 'sent' bytes}] of a device.
  """
  total, scattered, times, often = {}, None, _times(hlo), 1
  for line in hlo.splitlines():
    if line.endswith('{'):  # a computation begins
      scattered, often = SCATTER.match(line), times.get(_name(line), 1)
    if not (found := OPERATION.search(line)):
      continue
    shapes, op, start = found.groups()
    if scattered and op == 'all-reduce':
      shapes, op = scattered[1], 'reduce-scatter'
    sizes = [_bytes(*shape) for shape in re.findall(r'(\w+)\[([\d,]*)\]', shapes)]
    if start and op != 'all-reduce':  # its value is (operands, results)
      sizes = sizes[len(sizes) // 2 :]
    devices, size = _group_size(line, hlo), sum(sizes)
    entry = total.setdefault((op, devices), {'count': 0, 'bytes': 0, 'sent': 0})
    entry['count'] += often
    entry['bytes'] += often * size
    entry['sent'] += often * SENT[op](size, devices)
  return [{'op': op, 'devices': devices, **entry} for (op, devices), entry in total.items()]


def hbm_bytes(hlo: str) -> int:
  """Bytes that a compiled program reads from HBM and writes to it; loops as in `collectives`.

  What an instruction reads and writes counts whole, but for copies to and from the memory on the
  chip, which has layouts with S(...) and counts nothing. (XLA's own 'bytes accessed' has both.)
  """
  inside, total, arrays, times, often = False, 0, {}, _times(hlo), 1
  fused = set(re.findall(r' calls=%([\w.-]+)', hlo))
  for line in hlo.splitlines():
    if line.endswith('{'):  # a computation begins
      name = _name(line)
      inside, often = name in fused, times.get(name, 1)
    if inside or not (found := INSTRUCTION.search(line)):
      continue
    name, shapes, op, operands = found.groups()
    arrays[name] = [
      (_bytes(dtype, shape), 'S(' not in layout)
      for dtype, shape, layout in re.findall(r'(\w+)\[([\d,]*)\](\{[^}]*\})?', shapes)
    ]
    if op in FREE or op.endswith('-done') or 'custom_call_target="ConcatBitcast"' in line:
      continue
    if op in ('copy-start', 'slice-start'):  # its value holds both ends
      ends = arrays[name][:2]
      total += often * min(size for size, _ in ends) * sum(in_hbm for _, in_hbm in ends)
      continue
    read = [array for operand in re.findall(r'%([\w.-]+)', operands) for array in arrays[operand]]
    total += often * sum(size for size, in_hbm in arrays[name] + read if in_hbm)
  return total


def _name(line):
  """Of the computation that begins in a line."""
  return line.removeprefix('ENTRY ').removeprefix('%').split(' ')[0]


def _times(hlo):
  """{computation: how often the program runs it}; a loop whose length it does not say, once."""
  callers, caller = {}, ''
  for line in hlo.splitlines():
    if line.endswith('{'):
      caller = _name(line)
    for role, name in CALL.findall(line):
      trips = TRIPS.search(line) if role == 'body' else None
      callers[name] = caller, int(trips[1]) if trips else 1

  def times(name):
    caller, trips = callers.get(name, ('', 1))
    return trips * times(caller) if caller else trips

  return {name: times(name) for name in callers}


def _bytes(dtype, shape):
  return BYTES.get(dtype, 4) * math.prod(int(n) for n in shape.split(',') if n)


def _group_size(line, hlo):
  """Devices that exchange with one another; XLA writes its groups in one of four forms."""
  if found := re.search(r'replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}', line):
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
    axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2])  # a part of an axis has its size
    return math.prod(int(part or sizes[name]) for name, part in axes)
  if found := re.search(r'replica_groups=\[(?:\d+,)*(\d+)\]<=', line):
    return int(found[1])
  if found := re.search(r'(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}', line):
    return found[1].count(',') + 1
  return int(re.search(r'num_partitions=(\d+)', hlo)[1])
