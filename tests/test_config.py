"""Configs that hold together, and what is said of those that do not."""

import pytest

from sm3det_jax import config as configs


def load(*arguments):
  return configs.load(list(arguments))


@pytest.mark.parametrize(
  'name', ['sm3det_convnext_t', 'quickstart', 'real_sample', 'real_sample:full']
)
def test_shipped_configs_load_by_name(name):
  c = load(f'--config={name}')
  assert list(c.tasks) == ['sar', 'rgb', 'ifr']


def test_the_paper_s_label_space_has_26_classes():
  c = load('--config=sm3det_convnext_t')
  assert len(configs.joint_classes(c)) == 26
  assert configs.label_space(c, 'ifr')[21:] == ('CAR', 'BUS', 'FERIGHT_CAR', 'TRUCK', 'VAN')
  c.label_space = 'per_task'
  assert len(configs.label_space(c, 'ifr')) == 5


def test_values_change_on_the_command_line(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text('from sm3det_jax.config import default as get_config\n')
  c = load(f'--config={path}', '--config.optim.lr=3e-4', '--config.workers=2', '--config.seed=5')
  assert (c.optim.lr, c.workers, c.seed) == (3e-4, 2, 5)
  c = configs.override(c, ['--config.tasks.rgb.test.split=val'])
  assert c.tasks.rgb.test.split == 'val' and c.tasks.ifr.test.split == 'test'


@pytest.mark.parametrize(
  'argument, message',
  [
    ('--config.optim.lrr=1', 'lrr.*lr'),
    ('--config.optim.lr=fast', 'lr=fast'),
    ('--config.batch_size=30', r'batch_size=30 is not a multiple of 2 \+ 1 \+ 1 = 4'),
    ('--config.moe.top_k=9', 'top_k=9, num_experts=8'),
    ('--config.label_space=all', "'all'.*'joint' or 'per_task'"),
    ('--config.tasks.sar.head.type=yolo', "head.type='yolo'.*gfl"),
    ('--config.tasks.sar.box=obb', 'gfl.*hbb'),
    ('--config.tasks.rgb.bands=4', 'bands=4 but 3 means'),
  ],
)
def test_what_does_not_hold_is_named(argument, message):
  with pytest.raises(ValueError, match=message):
    load('--config=sm3det_convnext_t', argument)


def test_a_key_that_a_config_file_invents_is_named_with_its_neighbours():
  c = configs.default()
  c.optim.warmup_step = 3
  with pytest.raises(ValueError, match='config.optim.warmup_step is not a known key.*warmup_steps'):
    configs.check(c)
  c = configs.default()
  c.tasks.rgb.head.rpn.sample = 3
  with pytest.raises(ValueError, match='config.tasks.rgb.head.rpn.sample .*samples'):
    configs.check(c)


def test_a_model_needs_tasks_and_tasks_need_classes():
  c = configs.default()
  c.tasks.sar.classes = ()
  with pytest.raises(ValueError, match='config.tasks.sar.classes is empty'):
    configs.check(c)
  c.tasks.sar.classes = ('ship', 'ship')
  with pytest.raises(ValueError, match='twice'):
    configs.check(c)
  for name in list(c.tasks):
    del c.tasks[name]
  with pytest.raises(ValueError, match='config.tasks is empty'):
    configs.check(c)


def test_a_missing_file_lists_the_shipped_ones():
  with pytest.raises(FileNotFoundError, match='nowhere.*quickstart'):
    load('--config=nowhere')
  with pytest.raises(ValueError, match='which config'):
    load('--config.seed=3')
