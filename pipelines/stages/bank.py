"""The stage ``bank`` of an index: compares a bank of training captions with its videos."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from hbi_models.config_fields import require
from pipelines.models.folder import MODEL
from pipelines.recipe.recipe import Recipe
from pipelines.search.index_folder import features_pool
from pipelines.stages.stage import Stage, StageContext
from pipelines.workspace.artifact import Counts
from pipelines.workspace.contents import content_digest
from pipelines.workspace.records import INDEX_FILE
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import absolute_uri

BANK = "bank"


def bank_stage(recipe: Recipe, features: str) -> Stage:
    """Compares every caption of ``indexing.bank`` with every video of the index, whose features lie in ``features``.

    Raises:
        FileNotFoundError: there is no such file.
    """
    config = recipe.indexing
    require(config.bank is not None, "indexing.bank is not set; give a text file with one training caption per line")
    file = absolute_uri(str(config.bank))

    def run(context: StageContext) -> Counts:
        from pipelines.models.weights import load_model
        from pipelines.resources.device import compute_device
        from pipelines.search.bank import read_captions, write_bank
        from pipelines.search.features import FeatureStore, level_sizes

        folder, _, name = file.rpartition("/")
        captions = read_captions(Storage(folder).read_bytes(name), file)
        made = context.inputs["index"].storage
        device = compute_device()
        with TemporaryDirectory() as scratch:
            model = load_model(made.folder(MODEL), Path(scratch)).to(device)
        index = made.read_table(INDEX_FILE).combine_chunks()
        store = FeatureStore(features_pool(context.workspace, features).storage, index, level_sizes(model))
        write_bank(context.output, model, store, len(index), captions, config, device)
        return {"rows": len(index), "errors": 0, "captions": len(captions)}

    settings = {
        "captions": content_digest(file),
        **{name: getattr(config, name) for name in ("bank_beta", "bank_neighbours", "bank_weight")},
    }
    return Stage(name=BANK, version=1, settings=settings, inputs=("index",), run=run)
