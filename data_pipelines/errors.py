"""What the user can mend: errors of these classes are shown as one line, others as tracebacks."""

import errno
import os

FULL = {errno.ENOSPC: 'free some space', errno.EDQUOT: 'free some of your quota'}
REMEDIES = FULL | {
  errno.EACCES: 'check the rights of this place, or name another',
  errno.EPERM: 'check the rights of this place, or name another',
  errno.EROFS: 'name a place that can be written',
  errno.EEXIST: 'a file lies where a folder is meant; name another place',
  errno.ENOTDIR: 'a file lies where a folder is meant; name another place',
  errno.EISDIR: 'a folder lies where a file is meant',
}


class UserError(ValueError):
  """A config, file, folder or argument that cannot be used; the message says what to do."""


class NotFiniteError(UserError, FloatingPointError):
  """A training that has diverged."""


def line(error: BaseException) -> str | None:
  """One line that says what happened and what to do; None for an error that is not the user's."""
  if isinstance(error, UserError):
    text = str(error)
  elif isinstance(error, OSError):
    text = _of_system(error)
  else:  # libraries write files too, and tell of a full disk in errors of their own
    code = next((c for c in FULL if os.strerror(c) in str(error)), None)
    text = code and f'{os.strerror(code)}: {FULL[code]} and run the same command again'
  return text and ' '.join(text.split('\n'))


def _of_system(error):
  if error.strerror is None:  # one of ours
    return str(error)
  names = ' -> '.join(str(n) for n in (error.filename, error.filename2) if n is not None)
  remedy = REMEDIES.get(error.errno)
  return f'{names}: ' * bool(names) + error.strerror + f'; {remedy}' * bool(remedy)
