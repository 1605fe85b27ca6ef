"""Tuning of the settings of a recipe: Ray Tune runs the trials, Optuna proposes them, MLflow records them."""
