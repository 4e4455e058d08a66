"""The contract as its descriptors tell it, with its comments, for the tests of this folder.

Reads the committed image that reflection serves, so that what is tested is what users see.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ".hookline.v1."


@dataclass(frozen=True)
class Element:
    """One thing that a proto declares: its kind (`field`), full name, and leading comment."""

    kind: str
    name: str
    comment: str


@cache
def files() -> tuple[FileDescriptorProto, ...]:
    """The contract's own files, without those that they import from google/protobuf."""
    image = FileDescriptorSet.FromString(
        Path(ROOT, "service/hookline_service/api/descriptors.binpb").read_bytes()
    )
    return tuple(file for file in image.file if file.package == "hookline.v1")


@cache
def messages() -> dict[str, DescriptorProto]:
    """Every top-level message, by its name without the package."""
    return {message.name: message for file in files() for message in file.message_type}


@cache
def enums() -> dict[str, EnumDescriptorProto]:
    """Every top-level enum, by its name without the package."""
    return {enum.name: enum for file in files() for enum in file.enum_type}


@cache
def methods() -> dict[str, dict[str, MethodDescriptorProto]]:
    """The RPCs by service, in the order of the file."""
    return {
        service.name: {method.name: method for method in service.method}
        for file in files()
        for service in file.service
    }


def own(type_name: str) -> str | None:
    """The name without the package of one of the contract's types; None of any other."""
    return type_name.removeprefix(PACKAGE) if type_name.startswith(PACKAGE) else None


def is_map_entry(field: FieldDescriptorProto) -> bool:
    """Whether a field is a map, whose entry type the compiler made."""
    return field.type_name.count(".") > PACKAGE.count(".") and field.type_name.endswith("Entry")


def reachable(roots: list[str]) -> set[str]:
    """The messages that these messages hold, themselves included, however deep."""
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        held = (own(field.type_name) for field in messages()[name].field if not is_map_entry(field))
        waiting.extend(type_name for type_name in held if type_name in messages())
    return found


def elements() -> Iterator[Element]:
    """Everything declared, as a reader sees it: not what the compiler adds, such as map entries."""
    for file in files():
        comments = {
            tuple(place.path): place.leading_comments.strip()
            for place in file.source_code_info.location
        }
        for kind, name, path in _declared(file):
            yield Element(kind, name, comments.get(path, ""))


def _declared(file: FileDescriptorProto) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    # The numbers are those of FileDescriptorProto's own fields: see SourceCodeInfo.Location.path.
    for index, message in enumerate(file.message_type):
        yield from _declared_in(message, (4, index))
    for index, enum in enumerate(file.enum_type):
        yield "enum", enum.name, (5, index)
        for place, value in enumerate(enum.value):
            yield "value", f"{enum.name}.{value.name}", (5, index, 2, place)
    for index, service in enumerate(file.service):
        yield "service", service.name, (6, index)
        for place, method in enumerate(service.method):
            yield "rpc", f"{service.name}.{method.name}", (6, index, 2, place)
    for index, extension in enumerate(file.extension):
        yield "field", f"{file.name}.{extension.name}", (7, index)


def _declared_in(
    message: DescriptorProto, path: tuple[int, ...]
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    yield "message", message.name, path
    synthetic = {field.oneof_index for field in message.field if field.proto3_optional}
    for index, field in enumerate(message.field):
        yield "field", f"{message.name}.{field.name}", (*path, 2, index)
    for index, oneof in enumerate(message.oneof_decl):
        if index not in synthetic:
            yield "oneof", f"{message.name}.{oneof.name}", (*path, 8, index)
