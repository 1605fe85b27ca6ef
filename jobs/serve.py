"""Serves an index as an HTTP API and a web page: ``python -m jobs.serve --index URI [--video_qa MODEL]``.

``--video_qa`` is the folder of a question answering model. The API's schema is at ``/api/openapi.json``.
It runs until it is interrupted. After an index is made again, restart the server to use it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from jsonargparse import ActionConfigFile, ArgumentParser

from jobs.settings import run_job, set_up_logging
from pipelines.recipe.resources import ResourcesConfig
from pipelines.serve.configs import ServeConfig
from pipelines.workspace.uris import absolute_uri

logger = logging.getLogger("jobs")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job and returns its exit code."""
    parser = ArgumentParser(description="Serves an index as an HTTP API and a web page.", allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile, help="These options from a YAML file.")
    parser.add_argument("--index", type=str, required=True, help="Folder or URI of an index.")
    parser.add_argument("--video_qa", type=str | None, help="Folder of a question answering model.")
    parser.add_class_arguments(ServeConfig)
    parser.add_class_arguments(ResourcesConfig, "resources")
    parsed = parser.parse_args(arguments)
    options = parser.instantiate(parsed)
    config = ServeConfig(**{name: options[name] for name in ServeConfig.__dataclass_fields__})
    set_up_logging(None, name="serve")
    from pipelines.models.folder import vocabulary_of
    from pipelines.search.index_folder import read_current
    from pipelines.serve.server import served
    from pipelines.workspace.storage import Storage

    # Missing files are reported before anything starts.
    read_current(Storage(options["index"]))
    if options["video_qa"] is not None:
        vocabulary_of(options["video_qa"])
    # Absolute, because the processes of Ray may run in another folder.
    places = [None if place is None else absolute_uri(place) for place in (options["index"], options["video_qa"])]
    if config.host not in ("127.0.0.1", "localhost", "::1"):
        logger.warning("%s is reached from other machines, and there is no login", config.host)
    with served(str(places[0]), places[1], config, options["resources"]) as address:
        print(f"Serving {options['index']} at {address}  (Ctrl-C stops)", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            logger.info("stopping")
    return 0


if __name__ == "__main__":
    run_job(main)
