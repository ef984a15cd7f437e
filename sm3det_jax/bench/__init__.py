"""Benchmarks of `sm3det bench`: one file each, with `measure(config, steps)`.

What `measure` takes beside the config are options of the verb: `steps`, and `run`, the folder of a
trained run, which --workdir names and whose config it then is.
"""

import argparse
import ast
import importlib
import pkgutil
from collections.abc import Callable

from data_pipelines.errors import UserError
from sm3det_jax import config
from sm3det_jax.config import command_line


def names() -> dict[str, str]:
  """{name: what it measures}, the latter from its docstring; none of them is imported."""
  found = {}
  for module in pkgutil.iter_modules(__path__):
    first = (ast.get_docstring(_parsed(module.name)) or '').partition('\n')[0]
    found[module.name] = first.partition(': ')[2]
  return found


def load(name: str) -> Callable:
  """`measure` of a benchmark of `names`."""
  return importlib.import_module(f'{__name__}.{name}').measure


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `sm3det bench`, for `run`."""
  found = names()
  what = '; '.join(f'{name}: {text}' for name, text in found.items()).replace('%', '%%')
  parser.add_argument('name', choices=found, help=what)
  parser.add_argument('--steps', type=command_line.count, help='to time, or to train for')
  parser.add_argument('--workdir', help='folder of the run, where a run is measured')
  what = 'one line of JSON, the last of the output'
  parser.add_argument('--json', action='store_true', help=what)


def run(args: argparse.Namespace) -> dict[str, float]:
  """Measures what `sm3det bench` was asked for.

  Args:
    args: of `add_arguments`, and `overrides`, what was said of the config.

  Raises:
    UserError: a benchmark of a run without one; an option that a benchmark does not take; as
      `config.load`.
  """
  given = {'steps': args.steps, 'run': args.workdir}
  given = {key: value for key, value in given.items() if value is not None}
  taken = _taken(args.name)
  if 'run' in taken and 'run' not in given:
    raise UserError(f'{args.name} measures a trained run: name its folder with --workdir')
  for key in given.keys() - taken:
    raise UserError(f'{args.name} takes no {"--workdir" if key == "run" else f"--{key}"}')
  if 'run' in given:
    from sm3det_jax import checkpoint  # lazily: it loads JAX

    c = config.override(checkpoint.load_config(args.workdir), args.overrides)
  else:
    c = config.load(args.overrides)
  return load(args.name)(c, **given)


def _taken(name):
  """Parameters of a benchmark's `measure`; it is not imported."""
  (measure,) = (
    node
    for node in _parsed(name).body
    if isinstance(node, ast.FunctionDef) and node.name == 'measure'
  )
  return {argument.arg for argument in measure.args.args}


def _parsed(name):
  (module,) = (m for m in pkgutil.iter_modules(__path__) if m.name == name)
  return ast.parse(module.module_finder.find_spec(name).loader.get_source(name))
