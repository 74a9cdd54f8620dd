"""The command line: the options, and the commands beside the experiment."""
