"""Ray's own checks of a file for `ray up`, by its autoscaler's private interface: another version may change these."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylm.errors import one_line

MAX_MESSAGE_CHARS = 200
"""Length of a message; those of jsonschema can have the whole value in them."""


@dataclass(frozen=True)
class ConfigError:
    """A key or value that Ray refuses."""

    path: Sequence[str | int]
    """Keys and indices that lead to it."""
    message: str
    names: Sequence[str] = ()
    """Keys that are known in that place, for one that is not."""


def find_config_errors(config: Mapping[str, Any]) -> list[ConfigError]:
    """Return all errors of a cluster's configuration by Ray's schema, or the first of Ray's further checks."""
    import jsonschema
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))
    validator = jsonschema.validators.validator_for(schema)(schema)
    found: list[ConfigError] = []
    for error in validator.iter_errors(config):
        path = list(error.absolute_path)
        if error.validator == "additionalProperties" and isinstance(error.instance, dict):
            known = sorted(error.schema.get("properties", {}))
            unknown = [str(name) for name in error.instance if name not in known]
            found += [ConfigError([*path, name], "Ray knows no such key here", known) for name in unknown]
        else:
            found.append(ConfigError(path, error.message[:MAX_MESSAGE_CHARS]))
    return found or _check_by_ray(config)


def _check_by_ray(config: Mapping[str, Any]) -> list[ConfigError]:
    """Return the error with which `ray up` would end before it asks the provider for anything, in a list, or none."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)  # of defaults that it fills in
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            validate_config(prepare_config(copy.deepcopy(dict(config))))
    except NotImplementedError as error:  # an unknown provider
        return [ConfigError(["provider", "type"], one_line(error))]
    except Exception as error:  # Ray raises errors of many classes here
        return [ConfigError([], one_line(error))]
    return []
