"""Named choices of one kind (networks, losses, ...) whose arguments an option file may give."""

import functools
import inspect
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from utils.utils_error import UserError
from utils.utils_option_mistakes import dotted, explain, nearest, shown

Entry = Callable[..., Any]


class Table(Mapping[str, Entry]):
    """The things of one `kind` by name; `supplied`: parameters that the trainer fills in and no option file gives."""

    def __init__(self, kind: str, entries: dict[str, Entry], supplied: Collection[str] = ()) -> None:
        self.kind = kind
        self.supplied = frozenset(supplied)
        self._entries = dict(entries)
        self._models: dict[str, type[BaseModel]] = {}

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def arguments(self, name: str) -> type[BaseModel]:
        """The arguments that an option file may give to `name`, as a strict model made from its signature."""
        if name not in self._models:
            self._models[name] = _model_of(name, self[name], self.supplied)
        return self._models[name]

    def build(self, name: str, arguments: Mapping[str, Any], **supplied: Any) -> Any:
        """Call the entry with the validated arguments and those of `supplied` that it takes."""
        if mistakes := self.mistakes("name", name, arguments):
            raise UserError("\n".join([f"{self.kind} {shown(name)}:", *mistakes]))
        given = _validated(self.arguments(name), arguments)
        taken = inspect.signature(self[name]).parameters.values()
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken)
        names = {parameter.name for parameter in taken}
        return self[name](**given, **{key: value for key, value in supplied.items() if takes_any or key in names})

    def unknown(self, where: str, name: object) -> str | None:
        """The mistake of a `name` that is not in the table, given at the path `where`; None if it is."""
        if isinstance(name, str) and name in self:
            return None
        article = "an" if self.kind[:1] in "aeiou" else "a"
        near = nearest(name, self) if isinstance(name, str) else ""
        return f"{where}: {shown(name)} is not {article} {self.kind}{near or ';'} known: {', '.join(self)}"

    def mistakes(
        self,
        where: str,
        name: object,
        arguments: Mapping[str, Any],
        prefix: str | None = None,
        also: Collection[str] = (),
    ) -> list[str]:
        """One line per mistake in a `name` given at the path `where` and in its arguments.

        prefix: the path of the arguments (default: they stand beside the name). also: other keys allowed there.
        """
        if (unknown := self.unknown(where, name)) is not None:
            return [unknown]
        model = self.arguments(str(name))
        prefix = where.rpartition(".")[0] if prefix is None else prefix
        filled_in = [
            f"{dotted(prefix, key)}: the trainer gives this argument to every {self.kind}; remove it"
            for key in arguments
            if key in self.supplied
        ]
        given = {key: value for key, value in arguments.items() if key not in self.supplied}
        try:
            _validated(model, given)
        except ValidationError as error:
            return filled_in + explain(error, json.loads(json.dumps(given)), model, prefix, also)
        return filled_in


def _validated(model: type[BaseModel], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The given arguments, converted; defaults are left to the callable. By way of JSON: lists become tuples."""
    validated = model.model_validate_json(json.dumps(dict(arguments)))
    given = {
        field.alias or name: getattr(validated, name)
        for name, field in model.model_fields.items()
        if name in validated.model_fields_set
    }
    return given | (validated.model_extra or {})


def _model_of(name: str, entry: Entry, supplied: Collection[str]) -> type[BaseModel]:
    hints = _hints(entry)
    fields: dict[str, Any] = {}
    takes_any = False
    for parameter in inspect.signature(entry).parameters.values():
        takes_any = takes_any or parameter.kind is parameter.VAR_KEYWORD
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or parameter.name in supplied:
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        description = f"{name} needs it" if default is ... else None
        annotation = _usable(hints.get(parameter.name, Any))
        if parameter.name.startswith("_") or hasattr(BaseModel, parameter.name):  # names pydantic keeps for itself
            field = f"argument{parameter.name}", Field(default, alias=parameter.name, description=description)
        else:
            field = parameter.name, Field(default, description=description)
        fields[field[0]] = (annotation, field[1])
    config = ConfigDict(strict=True, extra="allow" if takes_any else "forbid", allow_inf_nan=False)
    return create_model(name, __config__=config, **fields)


def _hints(entry: Entry) -> dict[str, Any]:
    while isinstance(entry, functools.partial):
        entry = entry.func
    if inspect.isclass(entry):
        entry = entry.__init__
    elif not inspect.isroutine(entry):
        entry = type(entry).__call__
    try:
        return get_type_hints(entry, include_extras=True)
    except NameError:  # one of them exists only for type checkers
        return {name: hint for name, hint in inspect.get_annotations(entry).items() if not isinstance(hint, str)}


def _usable(annotation: Any) -> Any:
    """The annotation, or Any for a type that pydantic cannot read from a file, such as a tensor."""
    try:
        TypeAdapter(annotation)
    except (PydanticSchemaGenerationError, PydanticUserError):
        return Any
    return annotation
