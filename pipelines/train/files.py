"""Names inside a training artifact, for modules that must not load PyTorch."""

from hbi_models.metric_names import ANSWER_METRICS, DIRECTIONS, RANK_METRICS

HISTORY = "history.jsonl"
"""Every point of every curve, one step a line."""

NON_FINITE = "non_finite_batch.json"
"""Report of a training that was stopped because its loss was not finite."""

CHECKPOINTS = "checkpoints"
"""Folder of checkpoints of a training without Ray Train, such as a trial of a tuning."""

RAY_TRAIN = "train"
"""Folder of Ray Train's own checkpoints."""

RAY_SNAPSHOT = f"{RAY_TRAIN}/checkpoint_manager_snapshot.json"
"""Ray Train's list of its complete checkpoints."""

SCORE = "validation/score"
"""The metric by which the best checkpoint is chosen; higher is better."""

ESTIMATOR_METRICS = (SCORE, "validation/explained_variance", "validation/mse")
RETRIEVAL_METRICS = (
    SCORE,
    *(f"validation/{direction}/{name}" for direction in DIRECTIONS for name in RANK_METRICS),
)
VIDEO_QA_METRICS = (SCORE, *(f"validation/{name}" for name in ANSWER_METRICS))
"""What the validation of each task reports."""
