"""The stage ``zero_shot``: the pretrained encoder alone, evaluated on the same split as the trained model."""

from __future__ import annotations

from typing import Any

from hbi_models.config_fields import require
from hbi_models.zero_shot_config import ZeroShotConfig
from pipelines.models.clip_weights import handed_out, weights_folders
from pipelines.recipe.recipe import Recipe
from pipelines.stages.frames import frames_pool
from pipelines.stages.settings import counting
from pipelines.stages.stage import Stage, StageContext
from pipelines.stages.training import say_what_is_left_out
from pipelines.workspace.artifact import Counts

ZERO_SHOT = "zero_shot"


def zero_shot_stage(recipe: Recipe) -> Stage:
    """Needs the manifest and the frames; writes the metrics of both ways of pooling frames.

    Raises:
        ValueError: the recipe's encoder is not pretrained.
    """
    clip = recipe.model.clip
    require(
        recipe.model.tokens is None,
        "a zero-shot evaluation is of CLIP on videos, but model.tokens takes features of another model; leave out "
        "--zero_shot and evaluation.zero_shot",
    )
    require(
        clip.pretrained is not None,
        f"a zero-shot evaluation is of pretrained weights, but model.clip.pretrained of {clip.architecture} is null; "
        "name a tag of open_clip or a file, or leave out --zero_shot and evaluation.zero_shot",
    )
    config = ZeroShotConfig(clip=clip, max_frames=recipe.model.max_frames)

    def run(context: StageContext) -> Counts:
        from pipelines.evaluate.zero_shot import evaluate_zero_shot
        from pipelines.splits import SplitView

        manifest, frames = context.inputs["manifest"].storage, context.inputs["frames"].storage
        view = SplitView(manifest, frames, frames_pool(context.workspace, recipe).storage, recipe.evaluation.split)
        say_what_is_left_out(ZERO_SHOT, view)
        metrics = evaluate_zero_shot(
            context.output,
            context.tracker,
            view,
            config=config,
            settings=recipe.evaluation,
            resources=recipe.resources.evaluation,
            seed=recipe.seed,
            weights=handed_out(context.workspace, clip),
        )
        return {"rows": len(view), "errors": 0, **metrics}

    settings: dict[str, Any] = {
        "encoder": counting(config, "features"),
        "split": recipe.evaluation.split,
        "bootstrap_samples": recipe.evaluation.bootstrap_samples,
        "seed": recipe.seed,
    }
    return Stage(
        name=ZERO_SHOT,
        version=1,
        settings=settings,
        inputs=("manifest", "frames"),
        run=run,
        keeps=weights_folders(clip),
    )
