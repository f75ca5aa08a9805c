"""Profiles: small YAML files that say what differs from a base params file, applied in place with all comments kept.

`extends` in a profile lists profiles of the same folder that are applied before it, `replace` the mappings that are
taken over whole; everything else is merged key by key. The result is validated before it is written, and the former
file is kept beside. Knows nothing of what the params mean.
"""

import io
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stm.errors import ParamsError, brief
from stm.files import write_text
from stm.params.all import Params
from stm.params.base import PARAMS_FILE, explain, read_params

FOLDER = Path("profiles")
KEPT = Path(".stm/params.yaml.before")  # from the params file's folder


def _yaml() -> YAML:
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 120, True
    yaml.indent(mapping=2, sequence=4, offset=2)
    # Without this a null is written as nothing at all, which reads like a value that was forgotten.
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    return yaml


def _load(path: Path) -> dict[str, Any]:
    try:
        data = _yaml().load(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
        raise ParamsError(f"cannot read {path}: {error.strerror}; files there: {known}") from error
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path} is not UTF-8: {error.reason} at byte {error.start}; save it as UTF-8") from error
    except (YAMLError, ValueError) as error:  # a ValueError is a date that does not exist
        raise ParamsError(f"{path} is not valid YAML: {brief(error)}") from error
    if not isinstance(data, dict):
        raise ParamsError(f"{path} holds no settings; write `section: {{key: value}}` lines as params.yaml has them")
    return data


def _overlay(base: Any, changes: Any, replaced: set[str], where: str = "") -> None:
    for key, value in changes.items():
        path = f"{where}.{key}".lstrip(".")
        if isinstance(value, dict) and isinstance(base.get(key), dict) and path not in replaced:
            _overlay(base[key], value, replaced, path)
        else:
            base[key] = value


def _take_words(changes: dict[str, Any], key: str, profile: Path, wanted: str) -> list[str]:
    """Take a list of words out of a profile; empty where it has none."""
    words = changes.pop(key, [])
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ParamsError(f"{profile}: {key} is {words!r}; list {wanted}")
    return words


def _apply(document: dict[str, Any], profile: Path, extending: tuple[Path, ...] = ()) -> None:
    """Change `document` as the profile says, after those that it extends."""
    if profile in extending:
        raise ParamsError(f"{profile} extends itself, over {extending[-1]}; take one of the two out of `extends`")
    changes = _load(profile)
    for name in _take_words(changes, "extends", profile, "names of profiles, for example [all-variants]"):
        _apply(document, profile.parent / f"{name}.yaml", (*extending, profile))
    replaced = _take_words(changes, "replace", profile, "dotted keys, for example [backbone.source]")
    _overlay(document, changes, set(replaced))


def apply_profile(profile: Path, base: Path = PARAMS_FILE) -> str:
    """Return the text of `base` with the profile applied; `ParamsError` if the result is not valid."""
    read_params(base)  # whose errors are of params and not of a profile
    document = _load(base)
    _apply(document, profile)
    stream = io.StringIO()
    _yaml().dump(document, stream)
    data = YAML(typ="safe").load(stream.getvalue())
    try:
        Params.model_validate(data)
    except ValidationError as error:
        raise ParamsError(
            f"with profile {profile.stem!r} params.yaml would be wrong, so nothing was written; profiles with splits "
            "of their own fit the params.yaml that came with the project (commit yours before you take that one back), "
            f"and for your own splits docs/own-data.md has what to set by hand:\n{explain(error, data, '')}"
        ) from error
    return stream.getvalue()


def use_profile(name: str, folder: Path = FOLDER, params: Path = PARAMS_FILE) -> Path | None:
    """Rewrite the params file with the profile of that name; return where the former file is kept.

    None if the profile changes nothing, in which case nothing is written.
    """
    text, former = apply_profile(folder / f"{name}.yaml", params), params.read_text(encoding="utf-8")
    if text == former:
        return None
    kept = params.parent / KEPT
    write_text(kept, former)
    write_text(params, text)
    return kept
