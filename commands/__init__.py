"""The subcommands of main_test.py, one a module: `add_arguments(parser)` and `run(args) -> exit status`."""
