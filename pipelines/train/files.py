"""Names inside a training artifact, for modules that must not load PyTorch."""

HISTORY = "history.jsonl"
"""Every point of every curve, one step a line."""

NON_FINITE = "non_finite_batch.json"
"""What stopped a training whose loss was no number any more."""

CHECKPOINTS = "checkpoints"
"""Folder to go on from, where a trial of a tuning trains by itself."""

RAY_TRAIN = "train"
"""Folder of Ray Train's own checkpoints."""

RAY_SNAPSHOT = f"{RAY_TRAIN}/checkpoint_manager_snapshot.json"
"""Names Ray Train's checkpoints that are whole."""

SCORE = "validation/score"
"""The metric by which the best checkpoint is chosen; higher is better."""

_RANK_METRICS = ("recall_at_1", "recall_at_5", "recall_at_10", "recall_at_50", "median_rank", "mean_rank")

ESTIMATOR_METRICS = (SCORE, "validation/explained_variance", "validation/mse")
RETRIEVAL_METRICS = (
    SCORE,
    *(f"validation/{direction}/{name}" for direction in ("text_to_video", "video_to_text") for name in _RANK_METRICS),
)
VIDEO_QA_METRICS = (SCORE, "validation/accuracy", "validation/top_5_accuracy")
"""What the validation of each task reports."""
