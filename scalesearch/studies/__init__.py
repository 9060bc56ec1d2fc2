"""What each command does, composed of the parts below: one module a command, with its settings, `run` and `show`."""
