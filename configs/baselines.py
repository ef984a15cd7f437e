"""What the paper compares SM3Det with, by name: `--config=baselines:NAME` or `NAME,key=value,...`.

    sm3det train --config=baselines:separate,task=rgb,backbone=van,size=S --workdir=runs/rgb_van_s
    sm3det train --config=baselines:uncertainty --workdir=runs/uncertainty

    separate           a model of one task; arguments task (sar, rgb, ifr), backbone, size, head
    simple_joint       one model; every part of a batch is of a random task, the larger data set more often
    domain_attention   squeeze-and-excite adapters in every block, a task its own
    unidet             partitioned heads: every head scores its own classes
    uncertainty        unidet, losses weighted by learned uncertainties
    dwa                unidet, losses weighted by how fast they fall (dynamic weight average)
    gradnorm           unidet, losses weighted so that their gradients in the neck keep pace
    dla                DLA without MoE, the paper's light model

None has MoE layers; the joint ones take the arguments of configs/sm3det.py, all take small=1 (two
minutes on a laptop, see there). As in the released configs, domain_attention, unidet and uncertainty take images
1:1:1, 24 a step; the paper has no rows of dwa and gradnorm, which are as uncertainty.
"""  # noqa: E501

import functools

from configs import sm3det
from data_pipelines.errors import UserError
from sm3det_jax import config as config_lib
from sm3det_jax.config.small import takes_small


@takes_small
def get_config(text: str = '') -> config_lib.ConfigDict:
  """The baseline that the text begins with, `NAME` or `NAME,KEY=VALUE,..`."""
  name, _, rest = text.partition(',')
  if name not in BASELINES:
    raise UserError(f'baselines:{name}: expected one of {", ".join(BASELINES)}')
  return BASELINES[name](rest)


def _dense(text):
  c = sm3det.get_config(text)
  c.moe.blocks = ((),) * len(c.backbone.depths)
  c.task_balance = 'none'
  return c


def _separate(text):
  a = config_lib.arguments(text, task='sar', backbone='convnext', size='T', head='')
  c = _dense(f'backbone={a.backbone},size={a.size}')
  if a.task not in c.tasks:
    raise UserError(f'argument task={a.task}: expected {", ".join(c.tasks)}')
  c.tasks = config_lib.ConfigDict({a.task: c.tasks[a.task]})
  if a.head:
    c.tasks[a.task].head = config_lib.head(a.head)
  c.tasks[a.task].ratio, c.label_space = 1, 'per_task'
  c.neck.extra_convs = c.tasks[a.task].head.strides[0] == 8  # two-stage ones: every second cell
  sm3det.twelve_epochs(c)
  return c


def _simple_joint(text):
  c = _dense(text)
  c.sampling = 'random'
  return c


def _domain_attention(text):
  c = _dense(text)
  c.backbone.adapters = True
  sm3det.mix(c, 1, 1, 1)
  return c


def _unidet(text, balance='none'):
  c = _dense(text)
  c.label_space, c.task_balance = 'per_task', balance
  sm3det.mix(c, 1, 1, 1)
  c.dwa.period = c.checkpoint_every  # an epoch, as in its paper
  return c


def _dla(text):
  c = _dense(text)
  c.task_balance, c.dla.bias = 'dla', 0.5
  return c


BASELINES = {
  'separate': _separate,
  'simple_joint': _simple_joint,
  'domain_attention': _domain_attention,
  'unidet': _unidet,
  'uncertainty': functools.partial(_unidet, balance='uncertainty'),
  'dwa': functools.partial(_unidet, balance='dwa'),
  'gradnorm': functools.partial(_unidet, balance='gradnorm'),
  'dla': _dla,
}
