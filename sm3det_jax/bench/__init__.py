"""Benchmarks of `sm3det bench`: one file each, with `measure(config, steps)`."""

import ast
import importlib
import pkgutil
from collections.abc import Callable


def names() -> dict[str, str]:
  """{name: what it measures}, the latter from its docstring; none of them is imported."""
  found = {}
  for module in pkgutil.iter_modules(__path__):
    source = module.module_finder.find_spec(module.name).loader.get_source(module.name)
    first = (ast.get_docstring(ast.parse(source)) or '').partition('\n')[0]
    found[module.name] = first.partition(': ')[2]
  return found


def load(name: str) -> Callable:
  """`measure` of a benchmark of `names`."""
  return importlib.import_module(f'{__name__}.{name}').measure
