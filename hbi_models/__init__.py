"""Hierarchical Banzhaf Interaction in PyTorch: model, game, losses, metrics, optimizer.

This room knows tensors only: no Ray, no MLflow, no files, no environment variables, no
command line. Importing it imports nothing heavy; import the module that you need.
"""
