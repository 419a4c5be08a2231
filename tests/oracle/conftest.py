"""Runs where mergekit is installed, which has an environment of its own: `make test-oracle`. Elsewhere nothing is collected."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("mergekit") else ["test_*.py"]
