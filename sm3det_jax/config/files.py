"""Config files and what the command line changes of them."""

import contextlib
import difflib
import importlib.util
import json
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Iterator

from absl import flags
from ml_collections import ConfigDict, config_flags

from data_pipelines.errors import UserError
from sm3det_jax.config.checks import check
from sm3det_jax.config.defaults import complete

SHIPPED = pathlib.Path(__file__).parents[2] / 'configs'
_shipped_modules: dict[str, types.ModuleType] = {}


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


def of_json(value):
  """A ConfigDict with tuples, as configs are written, out of parsed JSON."""
  if isinstance(value, dict):
    config = ConfigDict(sort_keys=False)
    for key, item in value.items():
      config[key] = of_json(item)
    return config
  return tuple(map(of_json, value)) if isinstance(value, list) else value


def of_run(path: pathlib.Path) -> ConfigDict:
  """The config of a run's config.json.

  Raises:
    UserError: it is none.
  """
  try:
    return complete(of_json(json.loads(path.read_text())))
  except UserError:
    raise
  except (ValueError, KeyError, AttributeError, TypeError) as error:
    raise UserError(
      f"{path} is not a run's config, torn or changed by hand ({type(error).__name__}: {error})"
    ) from error


def load(arguments: list[str]) -> ConfigDict:
  """The config that command-line arguments name.

  Args:
    arguments: `--config=FILE` (a path, or the name of a shipped config; `FILE:argument` hands the
      argument to its `get_config`; or a run's config.json), and any number of `--config.a.b=value`.

  Raises:
    FileNotFoundError: no such file; the shipped ones are listed.
    UserError: no --config, a file that fails, an unknown key, a value of another type, or as
      `check`.
  """
  named = [a.removeprefix('--config=') for a in arguments if a.startswith('--config=')]
  if not named:
    raise UserError('which config? say --config=FILE or --config=NAME of a shipped one')
  changes = [a for a in arguments if not a.startswith('--config=')]
  return override(_of_file(*_find(named[-1])), changes)


def override(config: ConfigDict, arguments: list[str]) -> ConfigDict:
  """`config` with `--config.a.b=value` changes, checked; errors as `load`."""
  for argument in arguments:
    _check_key(config, argument)
  values, arguments = flags.FlagValues(), ['sm3det', *arguments]
  try:
    config_flags.DEFINE_config_dict('config', config, flag_values=values, sys_argv=arguments)
    values(arguments)
    config = values.config
  except (AttributeError, KeyError, TypeError, ValueError, flags.Error) as error:
    text = str(error.args[0] if error.args else error)
    raise UserError(f'{" ".join(arguments[1:])}: {text}' if '--' not in text else text) from error
  config.unlock()
  return check(config)


def _check_key(config, argument):
  """Refuses the argument `--config.a.b=value` where `config` has no `a.b`."""
  if not re.match(r'--(no)?config\.', argument):
    raise UserError(f"{argument}: the config is the run's; --config.a.b=value changes values of it")
  where, section = 'config', config
  for key in re.sub(r'--(no)?config\.|=.*', '', argument, flags=re.S).split('.'):
    keys = list(section) if isinstance(section, ConfigDict) else []
    if key not in keys:
      near = difflib.get_close_matches(key, keys, 3) or keys
      known = f'near it: {", ".join(near)}' if keys else f'{where} is a value'
      raise UserError(f'{where}.{key} is not a known key; {known}')
    where, section = f'{where}.{key}', section[key]


def _of_file(path, arguments):
  """What `get_config(*arguments)` of a file returns; whatever goes wrong in it names its line."""
  if path.suffix == '.json':
    return of_run(path)
  source, module = path.read_bytes(), types.ModuleType(path.stem)
  module.__file__ = str(path)
  try:
    with shipped_configs():
      exec(compile(source, path, 'exec'), module.__dict__)
      config = module.get_config(*arguments) if hasattr(module, 'get_config') else None
  except UserError:
    raise
  except Exception as error:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
      lines, error = [error.lineno], f'{type(error).__name__}: {error.msg}'
    else:
      error = f'{type(error).__name__}: {error}'
    where = f'{path}, line {lines[-1]}' if lines else path
    raise UserError(f'{where}: {error}') from None
  if not isinstance(config, ConfigDict):
    raise UserError(f'{path}: expected a function get_config() that returns a ConfigDict')
  return config


@contextlib.contextmanager
def shipped_configs() -> Iterator[None]:
  """Within it, `configs` is the package beside this one, not a folder of the user's.

  What the user imported under that name is there again afterwards.
  """
  others = _take_configs()
  sys.modules.update(_shipped_modules)
  try:
    if not _shipped_modules:
      file, folder = SHIPPED / '__init__.py', [str(SHIPPED)]
      spec = importlib.util.spec_from_file_location(
        'configs', file, submodule_search_locations=folder
      )
      sys.modules['configs'] = importlib.util.module_from_spec(spec)
      spec.loader.exec_module(sys.modules['configs'])
    yield
  finally:
    _shipped_modules.update(_take_configs())
    sys.modules.update(others)


def _take_configs():
  names = [n for n in sys.modules if n.partition('.')[0] == 'configs']
  return {n: sys.modules.pop(n) for n in names}


def _find(name):
  """(path of a config file, its arguments) by path or by shipped name, as in FILE:argument."""
  file, colon, argument = name.partition(':')
  for path in (pathlib.Path(file), SHIPPED / file, SHIPPED / f'{file}.py'):
    if path.is_file():
      return path, [argument] if colon else []
  names = sorted(p.stem for p in SHIPPED.glob('*.py') if p.stem != '__init__')
  raise FileNotFoundError(f'no config file {file!r}; shipped ones: {", ".join(names)}')
