"""The modalities that a backbone may have parts of, and which of them a task is of."""

from ml_collections import ConfigDict

from data_pipelines.errors import UserError
from data_pipelines.modalities import BANDS

MODALITIES = tuple(BANDS)  # RingMoE's, in the order of its experts
OF_BANDS = {bands: name for name, bands in BANDS.items()}


def of_task(name: str, c: ConfigDict) -> str:
  """What a task's `modality` says; of 'auto' its name if that is one, else what its bands leave.

  Raises:
    UserError: none of them says it.
  """
  if c.modality != 'auto':
    return c.modality
  found = name if name in MODALITIES else OF_BANDS.get(c.bands)
  if found is None:
    raise UserError(
      f'config.tasks.{name} has bands={c.bands}, which no modality has: say which of '
      f'{", ".join(MODALITIES)} it is by config.tasks.{name}.modality'
    )
  return found


def of_tasks(config: ConfigDict) -> tuple[str, ...]:
  """The modalities of a config's tasks, each once, in the order of `MODALITIES`."""
  found = {of_task(name, task) for name, task in config.tasks.items()}
  return tuple(m for m in MODALITIES if m in found)
