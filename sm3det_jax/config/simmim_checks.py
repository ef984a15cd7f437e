"""What a masked-image model's parts must hold to: modalities, cells, backbone with each other."""

from ml_collections import ConfigDict

from data_pipelines.errors import UserError
from sm3det_jax.config import detector_checks
from sm3det_jax.config.backbones import STEM_STRIDE, stride


def check(config: ConfigDict) -> None:
  """Raises UserError if they contradict each other."""
  detector_checks.check_backbone(config)
  if config.backbone.type != 'ringmoe':
    raise UserError(
      f'config.backbone.type={config.backbone.type!r} has no mask token, which '
      "config.model='simmim' needs: set 'ringmoe'"
    )
  cell, last = config.simmim.cell, stride(config)
  if cell % STEM_STRIDE:
    raise UserError(f'config.simmim.cell={cell} is no multiple of the patches of {STEM_STRIDE} px')
  for name, task in config.tasks.items():
    where = f'config.tasks.{name}'
    if task.kind != 'image':
      raise UserError(
        f"{where}.kind={task.kind!r}: config.model='simmim' learns tasks of kind 'image' alone"
      )
    for what, side in (('config.simmim.cell', cell), ('the stride of the last stage', last)):
      if any(n % side for n in task.size):
        raise UserError(f'{where}.size={tuple(task.size)}: {what} of {side} px does not divide it')
  if config.task_balance != 'none':
    raise UserError(
      f"config.task_balance={config.task_balance!r}: config.model='simmim' sums its losses: 'none'"
    )
