"""The subcommands of `fleetfit` that people use. Each module is imported only when its command is called."""
