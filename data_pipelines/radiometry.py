"""A task's `input`: which bands of a file, in which unit and range, become the model's.

    bands        which of the file's, from 1 on, in the model's order; (): all
    unit         'as_is', or decibels of power or amplitude
    range        'as_is'; 'fixed': `low` to `high`, in that unit, become 0 to 255, what lies outside
                 an end becomes that end; 'percentiles': the same with those of the data set
    low, high    of each band, or one for all
    percentiles  which ones

Bands are chosen where samples are loaded (`transforms.as_input`); units and ranges are the first
step on the device (`sm3det_jax.preprocess.apply_input`), so that the file's own type travels. Here
is what both need to know of an `input`, in numbers.
"""

import json

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.errors import UserError
from data_pipelines.source import dataset_folder

DECIBELS = {'power_to_db': 10.0, 'amplitude_to_db': 20.0}  # times log10 of a value
OUTSIDE = 0.9  # share of an image's values outside of its range, from which on that is said
FILLED = 0.01  # share of its range that an image's values fill at least
ROWS = 1000  # of an image that are looked at
USUAL = 0.5, 99.5  # percentiles of an image between which its values are said to lie


def in_file(values, unit: str) -> np.ndarray:
  """Values of a unit in the unit of the files, float64."""
  values = np.asarray(values, np.float64)
  return 10 ** (values / DECIBELS[unit]) if unit in DECIBELS else values


def outside(c: ConfigDict) -> float:
  """What stands outside an image that is turned, in the unit of the files: the model's least.

  That is 0 where values are taken as they are.

  Args:
    c: a task's `input`.
  """
  return float(in_file(min(c.low), c.unit)) if c.range != 'as_is' else 0.0


def resolved(data_root, name: str, task: ConfigDict) -> ConfigDict:
  """A task's config with the percentiles of its training data as `low` and `high`.

  What has these numbers already, or needs none, is returned itself.

  Args:
    data_root: folder of the prepared data sets.
    name: of the task, for messages.
    task: its config.

  Raises:
    UserError: a data set that was prepared without counting its values, or whose bands are not the
      task's; a band of one value.
    FileNotFoundError: no such data set.
  """
  c = task.input
  if c.range != 'percentiles' or len(c.low):
    return task
  where, folder = f'config.tasks.{name}.input', dataset_folder(data_root, task.dataset)
  found = json.loads((folder / 'metadata.json').read_text()).get('pixels', {})
  found = found.get(task.train.split)
  if not found:
    raise UserError(
      f"{where}.range='percentiles': the values of split {task.train.split!r} of {folder} were "
      "never counted; prepare the data set anew, or set range='fixed', low and high"
    )
  low, high = _ends(where, folder, found, task)
  task = task.copy_and_resolve_references()
  task.input.update(low=low, high=high)
  return task


def _ends(where, folder, found, task):
  c = task.input
  bands = [k - 1 for k in c.bands] or range(len(found['percentiles']))
  if max(bands) >= len(found['percentiles']) or len(bands) not in (1, task.bands):
    raise UserError(
      f'{folder} has {len(found["percentiles"])} bands, {where} wants bands={tuple(c.bands)} for '
      f'the {task.bands} of the task; name as many bands as it has'
    )
  table = found['positive' if c.unit in DECIBELS else 'percentiles']
  if any(table[k] is None for k in bands):
    raise UserError(f'{where}: a band of {folder} has no value that {c.unit!r} could take')
  ends = []
  for level in c.percentiles:
    values = np.array([table[k][found['levels'].index(level)] for k in bands])
    values = DECIBELS[c.unit] * np.log10(values) if c.unit in DECIBELS else values
    ends.append(tuple(float(f'{v:.7g}') for v in values))
  low, high = ends
  if any(a >= b for a, b in zip(low, high, strict=True)):
    raise UserError(
      f'{where}.percentiles={tuple(c.percentiles)} of {folder} are {low} and {high}, no range; '
      "take others, or set range='fixed', low and high"
    )
  return low, high


def mismatch(image: np.ndarray, name: str, task: ConfigDict) -> str | None:
  """Why an image's values cannot be what its task expects; None if they may be.

  Args:
    image: [H, W, bands] as `transforms.as_input` gives it.
    name: of the task.
    task: its config, `resolved`.
  """
  image = image[:: -(-len(image) // ROWS)]
  if task.input.range == 'as_is':
    return _of_mean(image, name, task.mean, task.std)
  return _of_range(image, f'config.tasks.{name}.input', task.input)


def _of_mean(image, name, mean, std):
  if image.dtype == np.uint8:
    return None
  low, high, where = image.min(), image.max(), f'config.tasks.{name}.mean/std'
  if high > 255 >= max(mean) and max(std) <= 128:
    return f'{image.dtype} values up to {high:g}, {where} are of 8 bits: set them'
  if high <= 1 < min(mean):
    return f'{image.dtype} values from {low:g} to {high:g}, mean {min(mean):g}: set {where}'
  return None


def _of_range(image, where, c):
  ends = np.asarray(c.low, np.float64), np.asarray(c.high, np.float64)
  low, high = (in_file(end, c.unit) for end in ends)
  share = ((image < low) | (image > high)).mean()
  values = image.astype(np.float64)
  if c.unit in DECIBELS:
    values = DECIBELS[c.unit] * np.log10(np.maximum(values, low))
  first, last = np.percentile(values, USUAL, axis=(0, 1))  # of each band
  filled = ((np.minimum(last, ends[1]) - np.maximum(first, ends[0])) / (ends[1] - ends[0])).max()
  if share <= OUTSIDE and filled >= FILLED:
    return None
  first, last = np.percentile(image, USUAL)
  what = f'{share:.0%} are outside of' if share > OUTSIDE else 'nearly the same for'
  return (
    f'{image.dtype} values, most from {first:g} to {last:g}: {what} {where}, {min(low):g} to '
    f"{max(high):g} in the files' unit; set its unit, low and high as this data has them"
  )
