"""Hierarchical Banzhaf Interaction in PyTorch: model, game, losses, metrics, optimizer.

This room knows tensors and the files of models: no Ray, no MLflow, no environment variables, no
command line. Importing it imports nothing heavy; import the module that you need.
"""
