"""One folder at any URI: files, tables, shards, locks, artifacts, and which runs were here."""
