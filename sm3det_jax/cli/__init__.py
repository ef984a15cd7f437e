"""`sm3det <verb>`: a verb parses its arguments and calls the room that does the work.

A verb's own modules are loaded for that verb alone, so that `--help` comes at once; the room, after
the config is read: a slip of the keys is told at once.
"""

import argparse
import io
import logging
import re
import signal
import sys

from data_pipelines import errors
from sm3det_jax import __version__
from sm3det_jax.cli.verbs import VERBS

WORKDIR = 'folder of the run: config, checkpoints, logs and results'


def main(argv: list[str] | None = None) -> int:
  """Runs a verb; errors a user can mend are one line on standard error and exit status 2."""
  if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the screen lacks stops no report
    sys.stdout.reconfigure(errors='backslashreplace')
  argv = _joined(sys.argv[1:] if argv is None else argv)
  parser = _parser(next((a for a in argv if not a.startswith('-')), ''))
  args, rest = parser.parse_known_args(argv)
  strangers = [a for a in rest if not (args.takes_config and re.match(r'--(no)?config([.=]|$)', a))]
  if strangers:
    parser.error(f'{args.verb}: unknown arguments: {" ".join(strangers)}')
  args.overrides = rest
  logging.basicConfig(level=logging.INFO, format='%(message)s', handlers=[_Screen()])
  for library in ('absl', 'jax'):  # their remarks on backends and folders help no user
    logging.getLogger(library).setLevel(logging.ERROR)
  # these load no JAX; `doctor --config` does so itself
  if args.verb not in ('prepare', 'dataset', 'doctor', 'scenes', 'weights'):
    from sm3det_jax import compilation_cache

    compilation_cache.enable()
  try:
    return args.run(args) or 0
  except KeyboardInterrupt as error:
    print(f'sm3det {args.verb}: {str(error) or "interrupted"}', file=sys.stderr)
    return 128 + signal.SIGINT
  except Exception as error:
    line = errors.line(error)
    if line is None:
      raise
    print(f'sm3det {args.verb}: {line}', file=sys.stderr)
    return 2


class _Screen(logging.StreamHandler):
  """Standard error, whatever that is at the moment: above the bar, while one is shown."""

  stream = property(lambda self: sys.stderr, lambda self, _: None)


class _Parser(argparse.ArgumentParser):
  """No abbreviations, which would come to mean another thing with a new option; short errors."""

  def __init__(self, *args, **options):
    super().__init__(*args, allow_abbrev=False, **options)

  def error(self, message):
    self.exit(2, f'{self.prog}: {message} (see {self.prog} --help)\n')


def _joined(argv):
  """`--config X` and `--config.a X` as `--config=X` and `--config.a=X`."""
  joined = []
  for a in argv:
    if joined and re.fullmatch(r'--config(\.[\w.]+)?', joined[-1]) and not a.startswith('--'):
      joined[-1] += f'={a}'
    else:
      joined.append(str(a))
  return joined


def _parser(chosen):
  """A parser of all verbs, of which the chosen one knows its arguments."""
  parser = _Parser('sm3det', description='SM3Det: one detector, any sensor.')
  parser.add_argument('--version', action='version', version=f'sm3det {__version__}')
  verbs = parser.add_subparsers(dest='verb', required=True, metavar='VERB')
  for name, verb in VERBS.items():
    p = verbs.add_parser(name, help=verb.help, description=verb.help)
    p.set_defaults(run=verb.run, takes_config=verb.takes_config)
    if verb.workdir != 'none':
      p.add_argument('--workdir', required=verb.workdir == 'needed', help=WORKDIR)
    if name == chosen:
      verb.add_arguments(p)
  return parser
