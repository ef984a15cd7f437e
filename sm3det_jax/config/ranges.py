"""The numbers that a config's keys may be: one table for all of them.

A key is named as in `choices.CHOICES`, or by the part of its section that it lies in: 'tile.size'
is not 'task.size'. What a tuple holds, and tuples in it, is judged number by number.
"""

import math
import numbers
from typing import Any, NamedTuple


class Range(NamedTuple):
  """Finite numbers from `low` to `high`, whole ones if `low` is an int."""

  low: float
  high: float = math.inf
  without: float | None = None  # the one number that is not among them, mostly an end
  length: int = 0  # of a tuple; 0: any

  def holds(self, value: Any) -> bool:
    kind = numbers.Integral if isinstance(self.low, int) else numbers.Real
    return (
      isinstance(value, kind)
      and not isinstance(value, bool)
      and math.isfinite(value)
      and self.low <= value <= self.high
      and value != self.without
    )

  def __str__(self):
    name = 'a whole number' if isinstance(self.low, int) else 'a finite number'
    low = f'above {self.low:g}' if self.low == self.without else f'at least {self.low:g}'
    high = f'below {self.high:g}' if self.high == self.without else f'at most {self.high:g}'
    ends = [text for text, end in ((low, self.low), (high, self.high)) if math.isfinite(end)]
    if self.without not in (None, self.low, self.high):
      ends.append(f'not {self.without:g}')
    return f'{name} {" and ".join(ends)}'.strip()


COUNT, NATURAL = Range(1), Range(0)
ANY, POSITIVE, NOT_NEGATIVE = Range(-math.inf), Range(0.0, without=0), Range(0.0)
FRACTION, BELOW_ONE = Range(0.0, 1.0), Range(0.0, 1.0, without=1)

RANGES = {
  'seed': Range(0, 2**32 - 1),
  'batch_size': COUNT,
  'log_every': COUNT,
  'checkpoint_every': COUNT,
  'keep_checkpoints': COUNT,
  'mesh.data': Range(-1, without=0),
  'mesh.expert': COUNT,
  'mesh.model': COUNT,
  'neck.channels': COUNT,
  # tasks
  'task.ratio': COUNT,
  'task.bands': COUNT,
  'task.mean': ANY,
  'task.std': POSITIVE,
  'task.size': Range(1, length=2),
  'task.max_objects': COUNT,
  'task.flip': Range(0.0, 1.0, length=3),
  'task.rotate': FRACTION,
  'crop.area': Range(0.0, 1.0, without=0),
  'crop.aspect': Range(0.0, without=0, length=2),
  'task.min_side': NOT_NEGATIVE,
  'input.bands': COUNT,
  'input.low': ANY,
  'input.high': ANY,
  'input.percentiles': Range(0.0, 100.0, length=2),
  'tile.size': NATURAL,
  'tile.overlap': NATURAL,
  'tile.keep': FRACTION,
  # heads
  'head.channels': COUNT,
  'head.convs': NATURAL,
  'head.strides': COUNT,
  'head.anchor_scale': POSITIVE,
  'head.anchor_scales': POSITIVE,
  'head.anchor_ratios': POSITIVE,
  'head.scales_per_octave': COUNT,
  'head.reg_max': COUNT,
  'head.atss_topk': COUNT,
  'head.focal_beta': NOT_NEGATIVE,
  'head.focal_gamma': NOT_NEGATIVE,
  'head.focal_alpha': FRACTION,
  'head.bbox_beta': NOT_NEGATIVE,
  'head.cls_weight': NOT_NEGATIVE,
  'head.bbox_weight': NOT_NEGATIVE,
  'head.dfl_weight': NOT_NEGATIVE,
  'head.weight': NOT_NEGATIVE,
  'head.pos_iou': Range(0.0, 1.0, without=0),
  'head.neg_iou': FRACTION,
  'head.min_pos_iou': FRACTION,
  'head.samples': COUNT,
  'head.positive_fraction': FRACTION,
  'head.allowed_border': Range(-1),
  'head.pre_nms': COUNT,
  'head.nms_iou': FRACTION,
  'head.max_proposals': COUNT,
  'head.fc_channels': COUNT,
  'head.output_size': COUNT,
  'head.sampling_ratio': NATURAL,
  'head.finest_scale': POSITIVE,
  'head.score_threshold': FRACTION,
  'head.max_detections': COUNT,
  # backbones
  'backbone.depths': COUNT,
  'backbone.channels': Range(2),  # a cosine gate halves them
  'backbone.mlp_ratios': POSITIVE,
  'backbone.mlp_ratio': POSITIVE,
  'backbone.heads': COUNT,
  'backbone.reductions': COUNT,
  'backbone.window': COUNT,
  'backbone.windows': COUNT,
  'backbone.epsilons': Range(0.0, without=0, length=4),
  'backbone.fc2_blocks': NATURAL,
  'backbone.drop_rate': BELOW_ONE,
  'backbone.drop_path_rate': BELOW_ONE,
  'backbone.layer_scale': NOT_NEGATIVE,
  'backbone.specialised': NATURAL,
  'backbone.collaborative': NATURAL,
  'backbone.groups': COUNT,
  # experts
  'moe.blocks': NATURAL,
  'moe.num_experts': COUNT,
  'moe.top_k': COUNT,
  'moe.balance_weight': NOT_NEGATIVE,
  'moe.capacity_factor': NOT_NEGATIVE,
  # the run
  'optim.lr': NOT_NEGATIVE,
  'optim.min_lr': NOT_NEGATIVE,
  'optim.reference_batch': COUNT,
  'optim.betas': Range(0.0, 1.0, without=1, length=2),
  'optim.momentum': BELOW_ONE,
  'optim.weight_decay': NOT_NEGATIVE,
  'optim.clip_norm': POSITIVE,
  'optim.steps': COUNT,
  'optim.milestones': NATURAL,
  'optim.gamma': FRACTION,
  'optim.warmup_steps': NATURAL,
  'optim.warmup_ratio': FRACTION,
  'optim.accumulate': COUNT,
  'optim.ema': BELOW_ONE,
  'simmim.cell': COUNT,
  'simmim.ratio': Range(0.0, 1.0, without=0),
  # balances of the tasks
  'dla.temperature': POSITIVE,
  'dla.bias': ANY,
  'dla.decay': FRACTION,
  'dla.warmup_steps': NATURAL,
  'dla.max_ratio': POSITIVE,
  'dwa.temperature': POSITIVE,
  'dwa.period': COUNT,
  'gradnorm.alpha': NOT_NEGATIVE,
  'gradnorm.lr': NOT_NEGATIVE,
}
