"""What the user can mend, told apart from bugs of this program."""


class UserError(ValueError):
    """A mistake, or a lack of the machine, that the user can mend.

    Its message is one line: what was given, what is accepted, what to do. The command line prints
    that line and ends with status 2; any other error is a bug, and shows its traceback.
    """
