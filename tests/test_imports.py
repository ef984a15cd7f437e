"""What may import what, and what the packages do without."""

import ast
import configparser
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ('sm3det_jax', 'data_pipelines', 'configs')
FILES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob('*.py'))

# From left to right; a module imports from its own column and those to its left. Whatever is not
# named here is a job, such as quickstart.
COLUMNS = [
  ('data_pipelines', '__version__'),
  ('config', 'precision', 'compilation_cache'),
  ('geometry', 'losses', 'sharding', 'weighting', 'preprocess'),
  ('layers',),
  ('moe',),
  ('backbones', 'necks'),
  ('heads', 'branches'),
  ('detector', 'simmim'),
  ('model', 'inference'),
  ('optim', 'checkpoint', 'logs', 'metrics', 'interop', 'viz'),
  ('results',),
  ('train', 'evaluate', 'predict', 'prediction'),
  ('analysis',),
  (),  # jobs
  ('cli', 'bench'),
]
JOBS = COLUMNS.index(())


def module_name(path):
  parts = path.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def imports(path):
  """Absolute names of the modules that a file imports, those inside functions too."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{path}: a relative import'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def top_level_imports(path):
  """`imports`, of those that run when the file is imported."""
  for node in ast.parse(path.read_text()).body:
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def column(module):
  package, *rooms = module.split('.')
  room = rooms[0] if package == 'sm3det_jax' and rooms else package
  return next((i for i, rooms in enumerate(COLUMNS) if room in rooms), JOBS)


def wrong_imports(module, imported):
  """Those of the names `imported` that `module` must not import."""
  package = module.split('.')[0]
  for name in imported:
    target = name.split('.')[0]
    if package == 'data_pipelines' and target in ('jax', 'jaxlib', 'flax', 'optax', 'orbax'):
      yield name
    elif package == 'configs' or module == 'sm3det_jax':  # whose front door is lazy
      continue
    elif target in ('sm3det_jax', 'data_pipelines') and column(name) > column(module):
      yield name


def circles(edges):
  """Sets of modules that import one another, {module: modules it imports} given."""
  reached = {}
  for start in edges:
    found, todo = set(), [start]
    while todo:
      new = set(edges.get(todo.pop(), ())) - found
      found |= new
      todo += new
    reached[start] = found
  rings = {frozenset(b for b in reached if b in reached[a] and a in reached[b]) for a in reached}
  return {ring for ring in rings if len(ring) > 1}


def test_modules_import_only_from_their_left():
  found = {module_name(p): list(wrong_imports(module_name(p), imports(p))) for p in FILES}
  assert not {module: wrong for module, wrong in found.items() if wrong}


def test_no_modules_import_each_other():
  names = {module_name(p) for p in FILES}
  edges = {}
  for path in FILES:
    here, found = module_name(path), set()
    for name in top_level_imports(path):
      name = name if name in names else name.rpartition('.')[0]
      found |= {name} & (names - {here})
    edges[here] = found
  assert not circles(edges)
  assert circles({'a': {'b'}, 'b': {'c'}, 'c': {'b'}}) == {frozenset('bc')}


def test_files_and_functions_fit_a_reader():
  for path in [p for p in FILES if p.name != '__init__.py' or p.read_text()]:
    text = path.read_text()
    assert text.count('\n') <= 300, path
    for node in ast.walk(ast.parse(text)):
      if isinstance(node, ast.FunctionDef):
        assert node.end_lineno - node.lineno < 80, f'{path}: {node.name}'


def test_the_order_is_really_checked():
  wrong = {
    'sm3det_jax.geometry.iou': 'sm3det_jax.moe.layer',
    'sm3det_jax.heads.gfl': 'sm3det_jax.train',
    'sm3det_jax.config.checks': 'sm3det_jax.losses',
    'data_pipelines.boxes': 'sm3det_jax.geometry.obb',
    'data_pipelines.images': 'jax.numpy',
  }
  for module, imported in wrong.items():
    assert list(wrong_imports(module, [imported])) == [imported]
    assert not list(wrong_imports('sm3det_jax.cli', [imported]))
  assert list(wrong_imports('data_pipelines.mixture', ['sm3det_jax.config.default', 'numpy']))
  assert set(imports(pathlib.Path(__file__))) == {
    'ast', 'configparser', 'pathlib', 're', 'subprocess', 'sys',
  }  # fmt: skip


def loaded_after(modules, then='pass'):
  """Names of all modules that a fresh Python has after it imported `modules`."""
  code = f"""
import importlib, sys
for name in {modules!r}:
  importlib.import_module(name)
{then}
print('loaded', *sys.modules)
"""
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
  assert not done.returncode, done.stderr
  return set(done.stdout.splitlines()[-1].split()[1:])


def test_every_module_imports_without_tensorflow_and_torch():
  no_backend = """
from jax._src import xla_bridge
assert not xla_bridge._backends, 'an import made a JAX backend'
"""
  loaded = loaded_after([module_name(p) for p in FILES], no_backend)
  assert {'sm3det_jax', 'data_pipelines.mixture'} <= loaded
  assert not loaded & {'tensorflow', 'torch', 'torchvision', 'mmcv', 'mmdet'}


def test_the_package_itself_is_light():
  assert not loaded_after(['sm3det_jax']) & {'jax', 'grain', 'cv2', 'tensorflow', 'torch'}


def test_the_command_line_loads_what_its_verb_needs():
  loaded = loaded_after(['sm3det_jax.cli'])
  assert 'sm3det_jax.cli.verbs' in loaded
  assert not loaded & {'numpy', 'jax', 'cv2', 'ml_collections', 'matplotlib', 'rasterio'}


def test_data_pipelines_load_no_jax():
  modules = [module_name(p) for p in FILES if p.is_relative_to(ROOT / 'data_pipelines')]
  modules.remove('data_pipelines.mixture')  # Grain takes tree_util from jax, which makes no backend
  assert 'jax' not in loaded_after(modules)


def test_no_path_of_another_machine():
  pattern = re.compile(r'(?<![\w./])/(work|root|home)/|\.\./shared')
  texts = [*FILES, ROOT / 'setup.cfg', ROOT / 'pyproject.toml', *ROOT.glob('*.md')]
  texts += [p for p in (ROOT / 'launch').rglob('*') if p.is_file()]
  found = [f'{p}: {m[0]}' for p in texts for m in pattern.finditer(p.read_text())]
  assert not found


# what is asked for and imported by a package of ours, but not by us
INDIRECT = {
  'array_record': 'the files that tensorflow-datasets and grain read and write',
  'flatbuffers': 'the files that jax.export reads and writes',
}
# what a user of it has, and nobody else needs
OTHERS = {'supervision', 'jax2onnx'}
# modules that are named otherwise than what brings them
BRINGS = {
  'absl-py': 'absl', 'opencv-python-headless': 'cv2', 'orbax-checkpoint': 'orbax',
  'PyYAML': 'yaml',
}  # fmt: skip


def required(section, key):
  """Modules that the requirements of an entry of setup.cfg bring."""
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  names = [re.match(r'[\w-]+', line)[0] for line in setup[section][key].split('\n') if line]
  return {BRINGS.get(name, name.replace('-', '_')) for name in names}


def foreign(files):
  """Modules of others that some files import."""
  found = {name.split('.')[0] for path in files for name in imports(path)}
  ours = {p.stem for p in (ROOT / 'tests').glob('*.py')} | set(PACKAGES)
  return found - ours - set(sys.stdlib_module_names)


def test_what_is_imported_is_required_and_nothing_else():
  needed = required('options', 'install_requires')
  asked = foreign(FILES) - required('options.extras_require', 'geo') - OTHERS
  assert asked == needed - set(INDIRECT) and set(INDIRECT) <= needed
  # PIL comes with matplotlib
  for_tests = foreign((ROOT / 'tests').glob('test_*.py')) - {'PIL'}
  assert for_tests <= needed | required('options.extras_require', 'test')


def test_no_extra_is_without_a_use():
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  texts = [p.read_text() for p in [ROOT / 'README.md', ROOT / '.ci/run', *FILES]]
  texts += [p.read_text() for p in (ROOT / 'launch').rglob('*') if p.is_file()]
  for extra in setup['options.extras_require']:
    assert any(re.search(rf'\[([\w,]+,)?{extra}[,\]]', text) for text in texts), extra
