"""What the paper varies in SM3Det-T, every row of its ablations, as arguments.

    sm3det train --config=ablations:moe=last2,experts=4,dla=none --workdir=runs/e4
    sm3det train --config=ablations:dla=head --workdir=runs/head_only

Arguments, all optional; without any it is the full model, `sm3det_convnext_t`:

    moe        where: none, last1, last2, last3 (even blocks of the last stages), even (of all stages),
               all (blocks)
    experts    E
    top_k      k
    level      grid, or image: gate on the spatial mean of a layer's input, one set of experts an image
    softmax    after the top-k (released), or before it (the paper's equation 2)
    noise      1, or 0: no noise on the gates
    aux        weight of the loss that balances the experts; 0 = off
    dla        full, none, head (only the heads' rates), backbone (only that of backbone and neck)
    T, b       temperature and bias of DLA
    ratio      SAR:RGB:IR images in a batch, of which 8 groups make a step
    small      1: in two minutes on a laptop, with drawn scenes, as `sm3det quickstart` makes them

The rows of the paper: MoE positions with dla=none; E and k with moe=last2,dla=none; image-level with
moe=last2,dla=none,level=image,experts=3,top_k=1 or level=image; DLA with the default MoE.
"""  # noqa: E501

from configs import sm3det
from data_pipelines.errors import UserError
from sm3det_jax import config as config_lib
from sm3det_jax.config.small import takes_small

POLICIES = {  # of heads, of backbone and neck
  'full': ('normal', 'sigmoid_kl'),
  'head': ('normal', 'none'),
  'backbone': ('none', 'sigmoid_kl'),
}


@takes_small
def get_config(text: str = '') -> config_lib.ConfigDict:
  """The main run with what the arguments vary of it: KEY=VALUE,.. as listed above."""
  a = config_lib.arguments(
    text, moe='last3', experts=8, top_k=2, level='grid', softmax='after', noise=1, aux=0.01,
    dla='full', T=3.0, b=0.4, ratio='2:1:1',
  )  # fmt: skip
  c = sm3det.get_config()
  c.moe.update(
    blocks=blocks(a.moe, c.backbone.depths), num_experts=a.experts, top_k=a.top_k, level=a.level,
    softmax=a.softmax, noisy=bool(a.noise), balance_weight=a.aux,
  )  # fmt: skip
  if a.dla == 'none':
    c.task_balance = 'none'
  elif a.dla in POLICIES:
    c.dla.head_policy, c.dla.shared_policy = POLICIES[a.dla]
  else:
    raise UserError(f'argument dla={a.dla}: expected none, {", ".join(POLICIES)}')
  c.dla.update(temperature=a.T, bias=a.b)
  sm3det.mix(c, *map(int, a.ratio.split(':')))
  return c


def blocks(where: str, depths: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
  """MoE blocks of each stage."""
  first = {'none': 4, 'last1': 3, 'last2': 2, 'last3': 1, 'even': 0, 'all': 0}
  if where not in first:
    raise UserError(f'argument moe={where}: expected {", ".join(first)}')
  step = 1 if where == 'all' else 2
  return tuple(
    tuple(range(0, depth, step)) if i >= first[where] else () for i, depth in enumerate(depths)
  )
