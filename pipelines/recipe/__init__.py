"""Settings: a file per section, and the recipe that holds them all."""
