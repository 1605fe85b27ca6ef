"""From annotation files and videos to a manifest and to sampled frames.

``msrvtt`` and ``captions_file`` read annotations and ``manifest`` makes one row per video of them;
``frames`` turns a row into encoded frames by asking a killable ``decode_process``, which samples
(``sampling``) and decodes (``decoders``); ``shapes`` generates a data set with known truth;
``augmentation`` alters stored frames for training. All of it is plain functions of rows: nothing
here knows of Ray.
"""
