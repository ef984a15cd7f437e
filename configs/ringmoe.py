"""RingMoE: SimMIM pre-training of hierarchical experts on four sensors (arXiv 2504.03166).

    sm3det pretrain --config=ringmoe:size=tiny --workdir=runs/ringmoe_tiny
    sm3det account --config=ringmoe

Arguments, all optional:

    size            giant (14.7 B parameters), base (Swin-B with experts), tiny (minutes on two laptop cores)
    profile         paper, or code: the released code's arithmetic
    modalities      those that are trained, such as opt+ms; by default opt+sar_l1+sar_l2+ms
    collaborative   collaborative experts that a MoE layer keeps of its 4
    dense           1: one dense FFN in the place of the experts
    without         a group of experts that is left out: specialised, collaborative, shared
    sar_target      what is reconstructed of complex SAR: power (profile paper), pixel (code)
"""  # noqa: E501

from data_pipelines.errors import UserError
from sm3det_jax import config as config_lib
from sm3det_jax.config import ringmoe

GROUPS = ('specialised', 'collaborative', 'shared')


def get_config(text: str = '') -> config_lib.ConfigDict:
  """The paper's run, or what the arguments make of it: KEY=VALUE,.. as listed above."""
  a = config_lib.arguments(
    text, size='giant', profile='paper', modalities='+'.join(ringmoe.MODALITIES), collaborative=-1,
    dense=0, without='', sar_target='',
  )  # fmt: skip
  c = ringmoe.ringmoe(a.size, a.profile, a.modalities.split('+') if a.modalities else ())
  if a.size == 'tiny':
    tiny(c)
  if a.collaborative >= 0:
    ringmoe.keep_collaborative(c, a.collaborative)
  if a.dense:
    ringmoe.make_dense(c)
  if a.without == 'collaborative':
    ringmoe.keep_collaborative(c, 0)
  elif a.without:
    if a.without not in GROUPS:
      raise UserError(f'argument without={a.without}: expected {", ".join(GROUPS)}')
    c.backbone[a.without] = type(c.backbone[a.without])(0)
  if a.sar_target:
    if 'sar_l1' not in c.tasks:
      raise UserError(f'argument sar_target={a.sar_target}: sar_l1 is none of the modalities')
    c.tasks.sar_l1.target = a.sar_target
  return c


def tiny(c: config_lib.ConfigDict) -> None:
  """The same in minutes on two cores, in place: two tiles of each modality a step."""
  c.batch_size = 2 * len(c.tasks)
  c.optim.update(lr=1e-3, min_lr=2e-6, steps=400, warmup_steps=20)
  c.log_every, c.checkpoint_every = 10, 200
