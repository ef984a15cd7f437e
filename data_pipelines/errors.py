"""What the user can mend: an error of this class is shown as one line, all others as tracebacks."""


class UserError(ValueError):
  """A config, file, folder or argument that cannot be used; the message says what to do."""
