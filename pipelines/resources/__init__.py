"""One Ray for a whole run, what each stage takes of it, and what its nodes see."""
