"""A recipe and what overrides it, made into one checked config that remembers where each value came from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from dualoptim_cli.config import RunConfig
from dualoptim_cli.errors import UserError, did_you_mean, raise_all

Path_ = tuple[str, ...]  # the keys that lead to a value: ("optimizer", "lr")


@dataclass(frozen=True)
class Override:
    """One value from outside the recipe: `keys` say where it goes, `origin` how the user spelled it."""

    keys: Path_
    value: Any
    origin: str


@dataclass(frozen=True)
class Resolved:
    """A checked config and the origin of each of its values, by dotted key."""

    config: RunConfig
    origins: Mapping[str, str] = field(default_factory=dict)


def recipe_folder() -> Path:
    """The folder of the shipped recipes: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).parent
    if (package / "_recipes").is_dir():
        return package / "_recipes"
    return package.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Every shipped recipe by name."""
    return {path.stem: path for path in sorted(recipe_folder().glob("*.yaml"))}


def describe(path: Path) -> str:
    """A recipe's own description: the comment in its second line, or nothing."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if len(lines) < 2 or not lines[1].startswith("#"):
        return ""
    return lines[1].removeprefix("#").strip()


@contextmanager
def telling_how_to_get(names: Sequence[str], lines: Mapping[str, str]) -> Iterator[None]:
    """Let an error about a model or about sources repeat the recipe's line on how to get the first that is not here.

    `lines` are a config's `obtain`. A file that is here needs no such line: then something else is wrong with it.
    """
    try:
        yield
    except UserError as fault:
        missing = [name for name in names if not Path(name).is_file()]
        known = [lines.get(name) or lines.get(re.split("[:@]", name)[0]) for name in missing]
        line = next((line for line in known if line), None)
        if line is None:
            raise
        raise UserError(fault.message, f"{fault.hint} (To get it: {line})".strip(), fault.code) from fault


def find_recipe(name: str) -> Path:
    """The file of a recipe, given its path or its shipped name."""
    if Path(name).suffix in {".yaml", ".yml"} or "/" in name or "\\" in name:
        path = Path(name)
        if path.is_file():
            return path
        raise UserError(f"There is no recipe file {name}.", "`dualopt recipes list` shows the shipped ones.")
    shipped = shipped_recipes()
    if name in shipped:
        return shipped[name]
    raise UserError(f'There is no shipped recipe "{name}".', did_you_mean(name, list(shipped)))


def parse_set(text: str) -> Override:
    """Read `--set optimizer.lr=2e-5`; the value is YAML, so numbers, null and lists are written as there."""
    key, equals, value = text.partition("=")
    keys = tuple(part.strip() for part in key.split("."))
    if not equals or not all(keys):
        raise UserError(f'--set "{text}" is not KEY=VALUE.', "Example: --set optimizer.lr=2e-5")
    try:
        return Override(keys, yaml.safe_load(value), f"--set {key}")
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f'--set "{_short(text)}": the value is not YAML.', 'Quote it: --set key="text"') from error


def resolve(recipe: str | None = None, overrides: Iterable[Override] = ()) -> Resolved:
    """Merge defaults, a recipe and overrides (later ones win) into one checked config.

    Raises UserError with every fault at once, each under the origin that the user knows it by.
    """
    config, origins, faults = _merge(recipe, overrides)
    raise_all(faults)
    assert config is not None
    return Resolved(config, {".".join(keys): _origin(keys, origins) for keys, _ in leaves(config.model_dump())})


def inspect(recipe: str | None, overrides: Iterable[Override] = ()) -> tuple[RunConfig | None, list[UserError]]:
    """Every fault of a recipe with its overrides, and the config that is left when each falls back to its default.

    None where nothing is left to look at any further. Raises UserError only for what is no recipe at all.
    """
    config, _, faults = _merge(recipe, overrides)
    return config, faults


def leaves(values: Mapping[str, Any], above: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Every value of a nested mapping with the keys that lead to it."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*above, str(key)))
        else:
            yield (*above, str(key)), value


def to_yaml(config: RunConfig) -> str:
    """The config as a recipe that gives the same run again."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def _merge(
    recipe: str | None, overrides: Iterable[Override]
) -> tuple[RunConfig | None, dict[Path_, str], list[UserError]]:
    """The config of a recipe and overrides, or of what is sound in them; origins by keys; and every fault."""
    values: dict[str, Any] = {}
    origins: dict[Path_, str] = {}
    faults: list[UserError] = []
    if recipe is not None:
        values, origins, faults = _read_recipe(find_recipe(recipe))
    for override in overrides:
        _put(values, override, origins)
    try:
        return RunConfig.model_validate(values), origins, faults
    except ValidationError as error:
        faults += _faults(error, origins)
        for detail in error.errors():
            _drop(values, _keys(detail["loc"]))
    try:
        return RunConfig.model_validate(values), origins, faults
    except ValidationError:
        return None, origins, faults


def _drop(values: dict[str, Any], keys: Path_) -> None:
    """Take out what is at these keys, so that its default takes its place."""
    place: Any = values
    for key in keys[:-1]:
        if not isinstance(place, dict):
            return
        place = place.get(key)
    if isinstance(place, dict) and keys:
        place.pop(keys[-1], None)


def _read_recipe(path: Path) -> tuple[dict[str, Any], dict[Path_, str], list[UserError]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = str(path)
        if mark:
            where += f":{mark.line + 1}"
        raise UserError(f"{where} is not YAML: {getattr(error, 'problem', None) or 'it cannot be parsed'}.") from error
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path} is not a recipe: it cannot be parsed as YAML.") from error
    if not isinstance(values, dict) or not isinstance(node, yaml.MappingNode):
        raise UserError(f"{path} holds no settings.", "`dualopt recipes show demo` shows what one looks like.")
    origins: dict[Path_, str] = {}
    faults = list(_locate(node, path, (), origins))
    return values, origins, faults


def _locate(node: yaml.MappingNode, path: Path, above: Path_, origins: dict[Path_, str]) -> Iterator[UserError]:
    """Note the line of every key; yield a fault for each key written twice, which YAML would silently drop."""
    for key, value in node.value:
        keys = (*above, str(key.value))
        where = f"{path}:{key.start_mark.line + 1}"
        if keys in origins:
            yield UserError(f"{where}: {'.'.join(keys)} is set a second time (first at {origins[keys]}).")
        origins[keys] = where
        if isinstance(value, yaml.MappingNode):
            yield from _locate(value, path, keys, origins)


def _put(values: dict[str, Any], override: Override, origins: dict[Path_, str]) -> None:
    place = values
    for key in override.keys[:-1]:
        inner = place.get(key)
        if not isinstance(inner, dict):
            inner = place[key] = {}
        place = inner
    if override.value == {} and isinstance(place.get(override.keys[-1]), dict):
        return  # asks for a section, which is there already
    place[override.keys[-1]] = override.value
    for keys in [keys for keys in origins if keys[: len(override.keys)] == override.keys]:
        del origins[keys]
    origins[override.keys] = override.origin


def _origin(keys: Path_, origins: Mapping[Path_, str]) -> str:
    for end in range(len(keys), 0, -1):
        if keys[:end] in origins:
            return origins[keys[:end]]
    return "default"


def _faults(error: ValidationError, origins: Mapping[Path_, str]) -> list[UserError]:
    """Pydantic's findings in the user's own spelling, one for each setting."""
    by_setting: dict[Path_, list[Mapping[str, Any]]] = {}
    for detail in error.errors():
        by_setting.setdefault(_keys(detail["loc"]), []).append({**detail})
    return [_fault(keys, details, origins) for keys, details in by_setting.items()]


def _keys(location: tuple[int | str, ...]) -> Path_:
    """The setting's own keys: pydantic adds the name of the union's member that it tried."""
    member = ("constrained-", "function-", "literal[", "dict[", "list[")
    parts = (str(part) for part in location)
    return tuple(part for part in parts if part not in {"float", "int", "str"} and not part.startswith(member))


def _fault(keys: Path_, details: Sequence[Mapping[str, Any]], origins: Mapping[Path_, str]) -> UserError:
    detail = details[-1]  # of a union's members, the last: the one that is no fixed word, as "auto" is
    kind = str(detail["type"])
    origin = _origin(keys, origins)
    where = f"{origin}: "
    if origin == "default":
        where = ""
    elif origin.startswith("--set"):
        where = "--set "
    name = ".".join(keys)
    if kind == "extra_forbidden":
        elsewhere = [path for path in _settings(RunConfig) if path.endswith(f".{keys[-1]}")]
        hint = did_you_mean(keys[-1], _known(keys[:-1]))
        if len(elsewhere) == 1:
            hint = f'Did you mean "{elsewhere[0]}"?'
        return UserError(f"{where}{name} is not a setting.", hint)
    if kind == "missing":
        return UserError(f"{where}{name} is missing.", _MISSING.get(name, ""))
    if kind == "value_error":
        return UserError(f"{where}{detail['ctx']['error']}")
    if detail["input"] is None:
        return UserError(f"{where}{name} has no value.", "Give it one, or leave the setting out.")
    words = [
        str(other["ctx"]["expected"]).replace("'", '"') for other in details[:-1] if other["type"] == "literal_error"
    ]
    wrong = _wrong(kind, detail)
    if words:
        wrong += f", nor {words[0]}"
    value = _short(detail["input"])
    return UserError(f'{where}{name}: "{value}" {wrong}.', _word_for(name, value, detail))


_MISSING = {
    "model": "Pass --model FOLDER_OR_HUB_NAME.",
    "model.name": "Pass --model FOLDER_OR_HUB_NAME.",
    "objectives": "Pass --forget FILE and --retain FILE.",
}


OTHER_WORDS = {
    "fp16": "Weights train in bfloat16. Computing in float16 beside float32 weights: --set model.mixed_precision=fp16",
    "fp32": 'Did you mean "float32"?',
    "bf16": 'Did you mean "bfloat16"?',
}
OTHER_WORDS |= {"float16": OTHER_WORDS["fp16"], "half": OTHER_WORDS["fp16"]}
BOUNDS = {
    "greater_than_equal": ("is not at least", "ge"),
    "greater_than": ("is not above", "gt"),
    "less_than_equal": ("is not at most", "le"),
    "less_than": ("is not below", "lt"),
}
PATTERNS = {"schedule.on_nonfinite": "stop, or skip 3", "checkpoint.every": "auto, 50, or 10m"}
"""What a setting that follows a pattern looks like."""


def _word_for(name: str, value: str, detail: Mapping[str, Any]) -> str:
    """The word that a setting has for a value that other tools take."""
    if name in PATTERNS:
        return f"Write {PATTERNS[name]}."
    if detail["type"] == "literal_error" and name.endswith("dtype"):
        return OTHER_WORDS.get(value.lower(), "")
    return ""


def _wrong(kind: str, detail: Mapping[str, Any]) -> str:
    if kind in BOUNDS:
        words, bound = BOUNDS[kind]
        return f"{words} {detail['ctx'][bound]:g}"
    if kind == "list_type":
        return "is not a list"
    if kind == "tuple_type":
        return "is not a pair of numbers"
    if kind == "string_pattern_mismatch":
        return "is not of that form"
    if kind in {"float_parsing", "float_type"}:
        return "is not a number"
    if kind.startswith(("int_", "int")):
        return "is not a whole number"
    if kind == "literal_error":
        return f"is not one of {detail['ctx']['expected']}"
    message = str(detail["msg"])
    return message.removeprefix("Input ")


def _short(value: Any) -> str:
    text = str(value)
    if len(text) > 60:
        text = text[:57] + "..."
    return text


def _known(keys: Path_) -> list[str]:
    """The settings that exist below `keys`."""
    section: Any = RunConfig
    for key in keys:
        fields = getattr(section, "model_fields", {})
        annotation = fields[key].annotation if key in fields else _inner_section(section)
        section = _inner_section(annotation)
    return list(getattr(section, "model_fields", {}))


def _settings(section: type[BaseModel], above: str = "") -> Iterator[str]:
    """Every setting by its dotted name, those of sections that are always there."""
    for name, setting in section.model_fields.items():
        inner = _inner_section(setting.annotation)
        if isinstance(inner, type) and issubclass(inner, BaseModel) and get_origin(setting.annotation) is not dict:
            yield from _settings(inner, f"{above}{name}.")
        else:
            yield f"{above}{name}"


def _inner_section(annotation: Any) -> Any:
    """The section inside `X | None` or `dict[str, X]`, or the annotation itself."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in get_args(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return annotation


def check_names(names: Sequence[str], choices: Sequence[str], setting: str) -> list[UserError]:
    """A fault for each name that is not among the choices."""
    return [
        UserError(f'{setting}: there is no "{name}".', did_you_mean(name, choices))
        for name in names
        if name not in choices
    ]
