"""Config files and what the command line changes of them."""

import pathlib

from absl import flags
from ml_collections import ConfigDict, config_flags

import configs
from data_pipelines.errors import UserError
from sm3det_jax.config.checks import check


def arguments(text: str, **defaults) -> ConfigDict:
  """The arguments of a config file, 'key=value,key=value', as `FILE:key=value,...` hands them over.

  Args:
    text: each value is read as the type of its default.
    **defaults: all keys.

  Raises:
    UserError: an unknown key, or a value of another type.
  """
  values = ConfigDict(defaults)
  for pair in filter(None, text.split(',')):
    key, _, value = pair.partition('=')
    if key not in defaults:
      raise UserError(f'argument {pair!r}: expected KEY=VALUE with a key of {sorted(defaults)}')
    try:
      values[key] = type(defaults[key])(value)
    except ValueError:
      kind = type(defaults[key]).__name__
      raise UserError(f'argument {pair!r}: {value!r} is no {kind}') from None
  return values


def load(arguments: list[str]) -> ConfigDict:
  """The config that command-line arguments name.

  Args:
    arguments: `--config=FILE` (a path, or the name of a shipped config; `FILE:argument` hands the
      argument to its `get_config`), and any number of `--config.a.b=value`.

  Raises:
    FileNotFoundError: no such file; the shipped ones are listed.
    UserError: no --config, an unknown key, a value of another type, or as `check`.
  """
  named = [i for i, a in enumerate(arguments) if a.startswith('--config=')]
  if not named:
    raise UserError('which config? say --config=FILE or --config=NAME of a shipped one')
  arguments = list(arguments)
  arguments[named[-1]] = f'--config={_find(arguments[named[-1]].removeprefix("--config="))}'
  return check(_parsed(config_flags.DEFINE_config_file, arguments))


def override(config: ConfigDict, arguments: list[str]) -> ConfigDict:
  """`config` with `--config.a.b=value` changes, checked; errors as `load`."""
  define = lambda name, **options: config_flags.DEFINE_config_dict(name, config, **options)
  return check(_parsed(define, arguments))


def _parsed(define, arguments):
  values = flags.FlagValues()
  arguments = ['sm3det', *arguments]
  define('config', flag_values=values, sys_argv=arguments)
  try:
    values(arguments)
    config = values.config
  except (AttributeError, KeyError, TypeError, flags.Error) as error:
    # what a config file raised is the last line of a traceback
    text = (
      str(error).strip('"\'\n').splitlines()[-1].removeprefix('data_pipelines.errors.UserError: ')
    )
    raise UserError(text) from error
  config.unlock()
  return config


def _find(name):
  """Path of a config file, with its argument after a colon, by path or by shipped name."""
  file, colon, argument = name.partition(':')
  shipped = pathlib.Path(configs.__file__).parent
  for path in (pathlib.Path(file), shipped / file, shipped / f'{file}.py'):
    if path.is_file():
      return f'{path}{colon}{argument}'
  names = sorted(p.stem for p in shipped.glob('*.py') if p.stem != '__init__')
  raise FileNotFoundError(f'no config file {file!r}; shipped ones: {", ".join(names)}')
