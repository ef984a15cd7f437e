"""Configs that hold together, and what is said of those that do not."""

import json

import pytest

from data_pipelines.errors import UserError
from sm3det_jax import config as config_lib


def load(*arguments):
  return config_lib.load(list(arguments))


@pytest.mark.parametrize(
  'name', ['sm3det_convnext_t', 'quickstart', 'real_sample', 'real_sample:full']
)
def test_shipped_configs_load_by_name(name):
  c = load(f'--config={name}')
  assert list(c.tasks) == ['sar', 'rgb', 'ifr']


def test_the_paper_s_label_space_has_26_classes():
  c = load('--config=sm3det_convnext_t')
  assert len(config_lib.joint_classes(c)) == 26
  assert config_lib.label_space(c, 'ifr')[21:] == ('CAR', 'BUS', 'FERIGHT_CAR', 'TRUCK', 'VAN')
  c.label_space = 'per_task'
  assert len(config_lib.label_space(c, 'ifr')) == 5


def test_values_change_on_the_command_line(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text('from sm3det_jax.config import default as get_config\n')
  c = load(f'--config={path}', '--config.optim.lr=3e-4', '--config.workers=2', '--config.seed=5')
  assert (c.optim.lr, c.workers, c.seed) == (3e-4, 2, 5)
  c = config_lib.override(c, ['--config.tasks.rgb.test.split=val'])
  assert c.tasks.rgb.test.split == 'val' and c.tasks.ifr.test.split == 'test'


@pytest.mark.parametrize(
  'argument, message',
  [
    ('--config.optim.lrr=1', 'lrr.*lr'),
    ('--config.optim.lr=fast', 'lr=fast'),
    ('--config.batch_size=30', r'batch_size=30 is not a multiple of 2 \+ 1 \+ 1 = 4'),
    ('--config.moe.top_k=9', 'top_k=9, num_experts=8'),
    ('--config.task_balance=gradnrm', "config.task_balance='gradnrm': expected 'none' or 'dla'"),
    ('--config.label_space=all', "'all'.*'joint' or 'per_task'"),
    ('--config.tasks.sar.head.type=yolo', "head.type='yolo'.*gfl"),
    ('--config.tasks.sar.kind=obb', 'gfl.*hbb'),
    ('--config.tasks.rgb.bands=4', 'bands=4 but 3 means'),
  ],
)
def test_what_does_not_hold_is_named(argument, message):
  with pytest.raises(ValueError, match=message):
    load('--config=sm3det_convnext_t', argument)


def test_a_runs_config_json_is_a_config(tmp_path):
  path, c = tmp_path / 'config.json', load('--config=quickstart')
  path.write_text(json.dumps(c.to_dict()))
  assert load(f'--config={path}').to_dict() == c.to_dict()
  assert load(f'--config={path}', '--config.seed=9').seed == 9
  path.write_text('{"false": false')
  with pytest.raises(UserError, match="config.json is not a run's config"):
    load(f'--config={path}')


def test_random_mixing_does_not_accumulate():
  with pytest.raises(ValueError, match="sampling='random'.*accumulate=1, not 2"):
    load('--config=baselines:simple_joint', '--config.optim.accumulate=2')


def test_a_key_that_a_config_file_invents_is_named_with_its_neighbours():
  c = config_lib.default()
  c.optim.warmup_step = 3
  with pytest.raises(ValueError, match='config.optim.warmup_step is not a known key.*warmup_steps'):
    config_lib.check(c)
  c = config_lib.default()
  c.tasks.rgb.head.rpn.sample = 3
  with pytest.raises(ValueError, match='config.tasks.rgb.head.rpn.sample .*samples'):
    config_lib.check(c)


def test_the_former_name_of_a_task_s_kind_is_told_the_new_one():
  c = config_lib.default()
  c.tasks.sar.box = 'hbb'
  with pytest.raises(ValueError, match='config.tasks.sar.box=.*`kind`'):
    config_lib.check(c)
  with pytest.raises(ValueError, match='config.tasks.sar.kind=.*hbb'):
    load('--config=quickstart', '--config.tasks.sar.kind=hb')


def test_a_model_needs_tasks_and_tasks_need_classes():
  c = config_lib.default()
  c.tasks.sar.classes = ()
  with pytest.raises(ValueError, match='config.tasks.sar.classes is empty'):
    config_lib.check(c)
  c.tasks.sar.classes = ('ship', 'ship')
  with pytest.raises(ValueError, match='twice'):
    config_lib.check(c)
  for name in list(c.tasks):
    del c.tasks[name]
  with pytest.raises(ValueError, match='config.tasks is empty'):
    config_lib.check(c)


def test_a_missing_file_lists_the_shipped_ones():
  with pytest.raises(FileNotFoundError, match='nowhere.*quickstart'):
    load('--config=nowhere')
  with pytest.raises(ValueError, match='which config'):
    load('--config.seed=3')


@pytest.mark.parametrize(
  'argument, batch, steps, balance',
  [
    ('sm3det', 32, 33_468, 'dla'),
    ('sm3det:backbone=van,size=B,sar=cascade_rcnn,rgb=roi_transformer', 32, 33_468, 'dla'),
    ('ablations:moe=last2,experts=8,top_k=3,dla=none', 32, 33_468, 'none'),
    ('ablations:ratio=1:1:1,T=4,b=0.3,softmax=before,noise=0,aux=0', 24, 44_628, 'dla'),
    ('baselines:simple_joint', 32, 33_468, 'none'),
    ('baselines:domain_attention', 24, 44_628, 'none'),
    ('baselines:unidet', 24, 44_628, 'none'),
    ('baselines:uncertainty', 24, 44_628, 'uncertainty'),
    ('baselines:dwa', 24, 44_628, 'dwa'),
    ('baselines:gradnorm', 24, 44_628, 'gradnorm'),
    ('baselines:dla,backbone=lsknet', 32, 33_468, 'dla'),
  ],
)
def test_families_have_the_published_schedules(argument, batch, steps, balance):
  c = load(f'--config={argument}')
  assert (c.batch_size, c.optim.steps, c.task_balance) == (batch, steps, balance)
  assert any(c.moe.blocks) == (not argument.startswith('baselines'))


def test_separate_models_have_one_task_and_its_images():
  steps = {'sar': 17_340, 'rgb': 9_384, 'ifr': 6_744}  # 33,468 in all
  for task, want in steps.items():
    c = load(f'--config=baselines:separate,task={task}')
    assert (list(c.tasks), c.optim.steps, c.label_space) == ([task], want, 'per_task')
  c = load('--config=baselines:separate,task=rgb,backbone=van,size=S,head=s2anet')
  assert (c.backbone.type, c.tasks.rgb.head.type) == ('van', 's2anet')


def test_ablations_without_arguments_are_the_main_run():
  same = ('sm3det', 'ablations', 'ablations:', 'ablations:moe=last3,dla=full,ratio=2:1:1')
  want = load('--config=sm3det_convnext_t').to_json()
  assert all(load(f'--config={name}').to_json() == want for name in same)


def test_ablations_change_what_they_name():
  c = load('--config=ablations:moe=all,level=image,experts=3,top_k=1,dla=head,T=2,b=0.6')
  assert c.moe.blocks == ((0, 1, 2), (0, 1, 2), tuple(range(9)), (0, 1, 2))
  assert (c.moe.level, c.moe.num_experts, c.moe.top_k) == ('image', 3, 1)
  assert (c.dla.head_policy, c.dla.shared_policy) == ('normal', 'none')
  assert (c.dla.temperature, c.dla.bias) == (2.0, 0.6)
  blocks = {where: load(f'--config=ablations:moe={where}').moe.blocks for where in
            ('none', 'last1', 'even')}  # fmt: skip
  assert blocks['none'] == ((),) * 4 and blocks['last1'] == ((), (), (), (0, 2))
  assert blocks['even'] == ((0, 2), (0, 2), (0, 2, 4, 6, 8), (0, 2))
  c = load('--config=ablations:noise=0,aux=0,softmax=before,dla=backbone,ratio=3:1:2')
  assert (c.moe.noisy, c.moe.balance_weight, c.moe.softmax) == (False, 0.0, 'before')
  assert (c.dla.head_policy, c.dla.shared_policy) == ('none', 'sigmoid_kl')
  assert ([t.ratio for t in c.tasks.values()], c.batch_size) == ([3, 1, 2], 48)


@pytest.mark.parametrize(
  'argument, message',
  [
    ('baselines:joint', '^baselines:joint: expected one of separate, simple_joint'),
    ('baselines:unidet,task=sar', "argument 'task=sar': expected KEY=VALUE with a key of"),
    ('sm3det:size=X', "convnext has no size 'X'"),
    ('sm3det:rgb=yolo', "head 'yolo': expected gfl"),
    ('sm3det:rgb=gfl', "config.tasks.rgb: head 'gfl' gives hbb, the task is obb"),
    ('ablations:experts=many', "argument 'experts=many': 'many' is no int"),
    ('ablations:moe=first', 'argument moe=first: expected none, last1'),
    ('ablations:level=cell', "config.moe.level='cell': expected 'grid' or 'image'"),
  ],
)
def test_arguments_that_do_not_hold_are_named_in_one_line(argument, message):
  with pytest.raises(ValueError, match=message) as error:
    load(f'--config={argument}')
  assert '\n' not in str(error.value)


def test_a_config_of_before_some_keys_gets_them():
  c, want = load('--config=quickstart'), load('--config=quickstart')
  for section, key in ((c, 'task_balance'), (c, 'dwa'), (c.moe, 'level'), (c.backbone, 'stems')):
    del section[key]
  del c.tasks.rgb.head.nms_iou, c.tasks.sar.bands
  for task in c.tasks.values():
    task.box = task.kind
    del task.kind
  assert config_lib.complete(c).to_dict() == want.to_dict()


def test_a_copy_shares_nothing_and_keeps_the_order_of_tasks():
  config = config_lib.default()
  copy = config_lib.copied(config)
  assert list(copy.tasks) == list(config.tasks) == ['sar', 'rgb', 'ifr']
  assert copy == config
  copy.tasks.sar.head.channels = 7
  assert config.tasks.sar.head.channels == 256
