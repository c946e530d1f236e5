"""Registries of components: frozen pydantic models, registered by name, whose fields are their parameters.

A component is data (it round-trips through JSON and hashes) plus the one method that does the work. To add
one, write a class in a file of its own and register it:

    @TRIGGERS.register("patch")
    class Patch(Trigger):
        size: int = 3
        ...

Heavy imports (torch, timm) belong inside the methods, so that planning a sweep stays fast.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, cached_property
from typing import Any, ClassVar, Generic, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

from bdray.errors import ComponentError, UserError, near, nearest

Sight = Literal["clean share", "poisoned set", "labels", "weights", "features", "logits only"]
"""What a repair or a detector may be allowed to see: some clean pictures, the training set as it was trained on, labels
of either, the network's weights and activations, its penultimate features alone, or only what it answers."""

VERSION_KEY = "@version"
"""What an identity says of a class whose meaning has changed; no field can have this name."""


class Identified(BaseModel):
    """Frozen, strictly validated content whose identity survives growth: ids and fingerprints are made of it.

    A field at its default is no part of the identity, so that a new option leaves the ids of all that came before it
    alone. What the same fields mean may therefore only change (a default included) together with `VERSION`.

    Class attributes:
        VERSION: raised when the meaning changes; part of the identity from 2 on.
        NOT_SCIENTIFIC: fields that say where something lies, not what it is; left out of the identity.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, validate_default=True, use_attribute_docstrings=True
    )

    VERSION: ClassVar[int] = 1
    NOT_SCIENTIFIC: ClassVar[frozenset[str]] = frozenset()

    def identity(self) -> dict[str, Any]:
        """The JSON content that says *what* this is."""
        return self._identity

    @cached_property
    def _identity(self) -> dict[str, Any]:
        return self._identity_content()

    def _identity_content(self) -> dict[str, Any]:
        content: dict[str, Any] = {} if self.VERSION == 1 else {VERSION_KEY: self.VERSION}
        defaults = _defaults_of(type(self))
        for name in type(self).model_fields:
            said = _identity_of(getattr(self, name))
            at_default = name in defaults and said == defaults[name]
            if name not in self.NOT_SCIENTIFIC and not (at_default and not _is_versioned(said)):
                content[name] = said
        return content


@cache
def _defaults_of(cls: type[BaseModel]) -> dict[str, Any]:
    """Identities of the fields' defaults; without those that must be given."""
    return {
        name: _identity_of(field.get_default(call_default_factory=True))
        for name, field in cls.model_fields.items()
        if not field.is_required()
    }


def _identity_of(value: Any) -> Any:
    if isinstance(value, Identified):
        return value.identity()
    if isinstance(value, (list, tuple)):
        return [_identity_of(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _identity_of(item) for key, item in value.items()}
    return value


def _is_versioned(said: Any) -> bool:
    """Whether something in here has changed its meaning: then it counts, even where all is at its default."""
    if isinstance(said, Mapping):
        return VERSION_KEY in said or any(map(_is_versioned, said.values()))
    return isinstance(said, list) and any(map(_is_versioned, said))


class Component(Identified):
    """A set of named parameters with one method that does the work.

    Class attributes:
        NAME_KEY: the key that holds the registered name (`name`; `strategy` for poisoning strategies).
        SOURCE: where the method comes from ("BadNets, Gu et al. 2017"), or "our choice".
        registered_name: set by the registry.
        registered_kind: set by the registry ("trigger").
    """

    NAME_KEY: ClassVar[str] = "name"
    SOURCE: ClassVar[str] = "our choice"
    registered_name: ClassVar[str] = ""
    registered_kind: ClassVar[str] = ""

    @property
    def title(self) -> str:
        """What it is, for messages: "trigger 'patch'"."""
        return f"{self.registered_kind} '{self.name}'"

    @property
    def name(self) -> str:
        """The name this component is asked for by."""
        variant = getattr(self, "variant", "") if self.registered_name.endswith("/") else ""
        return self.registered_name + variant

    @property
    def label(self) -> str:
        """Its name, and what is not at its default: "patch size=5"."""
        fields = [(name, getattr(self, name), field) for name, field in type(self).model_fields.items()]
        changed = [
            f"{name}={_worded(value)}"
            for name, value, field in fields
            if not field.is_required() and value != field.get_default(call_default_factory=True)
        ]
        return " ".join([self.name, *changed])

    def __str__(self) -> str:
        return self.label

    @model_serializer(mode="wrap")
    def _serialize(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = handler(self)
        if self.registered_name.endswith("/"):
            del fields["variant"]
        return {self.NAME_KEY: self.name, **fields}

    def _identity_content(self) -> dict[str, Any]:
        content = super()._identity_content()
        if self.registered_name.endswith("/"):
            del content["variant"]
        return {self.NAME_KEY: self.name, **content}


C = TypeVar("C", bound=Component)


class Registry(Generic[C]):
    """Components of one kind by name. A second registration under one name is an error.

    Args:
        kind: singular word for messages ("trigger").
        plural: what `bdray list` calls them ("triggers").
        base: the class all components of this kind extend.
        package: the package whose modules register the built-in components; all are imported on first use,
            so adding a component is adding a file.
    """

    def __init__(self, kind: str, plural: str, base: type[C], package: str) -> None:
        self.kind, self.plural, self.base, self._package = kind, plural, base, package
        self._classes: dict[str, type[C]] = {}
        self._prefixes: dict[str, type[C]] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[type[C]], type[C]]:
        """Class decorator. A name that ends in `/` registers a family: `timm/` takes any `timm/<variant>`,
        and the class gets the part behind the slash as its field `variant`.

        Raises:
            UserError: another class has the name. The same class of the same module, imported once more, may take it.
        """

        def add(cls: type[C]) -> type[C]:
            if not cls.__module__.startswith(f"{self._package}."):
                # So that a name of ours is taken before a user's class asks for it, and hers is the one to complain.
                self._load()
            known = self._prefixes if name.endswith("/") else self._classes
            if name in known and _full_name(known[name]) != _full_name(cls):
                both = f"by {_full_name(known[name])} and by {_full_name(cls)}"
                raise UserError(f"the {self.kind} '{name}' is registered twice: {both}; give one of them another name")
            cls.registered_name, cls.registered_kind = name, self.kind
            known[name] = cls
            return cls

        return add

    def names(self) -> list[str]:
        """Every registered name, sorted; families as `timm/<name>`."""
        self._load()
        return sorted(self._classes) + [f"{prefix}<name>" for prefix in sorted(self._prefixes)]

    def __iter__(self) -> Iterator[tuple[str, type[C]]]:
        self._load()
        return iter(sorted(self._classes.items()))

    def get(self, name: str) -> type[C]:
        """The class registered under `name`.

        Raises:
            ComponentError: unknown name; names the nearest.
        """
        self._load()
        if name in self._classes:
            return self._classes[name]
        prefix, slash, variant = name.partition("/")
        if variant and prefix + slash in self._prefixes:
            return self._prefixes[prefix + slash]
        raise ComponentError(self.name_key, f"there is no {self.kind} '{name}'; {nearest(name, self.names())}")

    def build(self, content: Mapping[str, Any] | str | C) -> C:
        """A component from `{name: ..., option: ...}` (or just its name).

        Raises:
            ComponentError: unknown name or option, wrong type or value; names the nearest.
        """
        if isinstance(content, Component):
            return content
        self._load()
        options = {self.name_key: content} if isinstance(content, str) else dict(content)
        name = options.pop(self.name_key, None)
        if name is None and (meant := near(self.name_key, map(str, options))):
            raise ComponentError(meant, f"no {self.kind} is named; did you mean '{self.name_key}'?")
        if not isinstance(name, str):
            problem = f"no {self.kind} is named" if name is None else f"{name!r} is not a name"
            raise ComponentError(self.name_key, f"{problem}; {nearest('', self.names())}")
        cls = self.get(name)
        if cls.registered_name.endswith("/"):
            options["variant"] = name.removeprefix(cls.registered_name)
        try:
            return cls.model_validate(options)
        except ValidationError as error:
            raise ComponentError(*explain(error, cls, f"{self.kind} '{name}'")) from None

    def label(self, content: Mapping[str, Any]) -> str:
        """The `label` of the component that a record's content describes; with every option where its class is not
        here, because readers of records import no plugin."""
        try:
            return self.build(content).label
        except ComponentError:
            options = (f"{option}={value}" for option, value in content.items() if option != self.name_key)
            return " ".join([str(content[self.name_key]), *options])

    @property
    def name_key(self) -> str:
        """The key that holds a component's name."""
        return self.base.NAME_KEY

    def _load(self) -> None:
        if self._loaded:
            return
        # Set first: the modules imported below ask their own registry. Unset on failure: a half-loaded registry lies.
        self._loaded = True
        try:
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__, f"{self._package}."):
                importlib.import_module(module.name)
        except BaseException:
            self._loaded = False
            raise


def _worded(value: Any) -> str:
    """An option's value in a label: four digits of a number, components that lie in a list by their own labels."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple) and any(isinstance(each, Component) for each in value):
        return f"[{', '.join(map(str, value))}]"
    return str(value)


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def said_sight(sees: Iterable[Sight]) -> str:
    """What a repair or a detector may see, in words."""
    return ", ".join(sorted(sees)) or "nothing"


def explain(error: ValidationError, cls: type[BaseModel], owner: str) -> tuple[str, str]:
    """The first problem of a pydantic error as (dotted path, one sentence with the nearest valid name)."""
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        holder = _field_holder(cls, first["loc"][:-1])
        word = str(first["loc"][-1])
        above = ".".join(filter(None, [owner, *(str(part) for part in first["loc"][:-1])]))
        return path, f"{above} has no option '{word}'; {nearest(word, holder.model_fields)}"
    message = "must be a mapping of options" if first["type"] == "model_type" else first["msg"]
    for noise in ("Value error, ", "Input "):
        message = message.removeprefix(noise)
    given = first.get("input")
    shown = "" if isinstance(given, (dict, BaseModel)) else f" (got {given!r})"
    return path, f"{message}{shown}"


def _field_holder(cls: type[BaseModel], loc: tuple[int | str, ...]) -> type[BaseModel]:
    for part in loc:
        field = cls.model_fields.get(str(part))
        nested = model_in(field.annotation) if field else None
        if nested is None:
            return cls
        cls = nested
    return cls


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, also where it may be null; None: it holds something else."""
    kinds = (annotation, *get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
