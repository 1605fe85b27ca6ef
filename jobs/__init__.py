"""Command-line jobs: settings in, one call, exit code. ``python -m jobs.run --help``."""
