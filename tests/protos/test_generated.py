"""The committed generated code matches the protos, and the option of the contract is usable.

`make check` compares the code byte by byte, with the generators; these tests run without them.
"""

import importlib
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.message import Message

from hookline.v1 import annotations_pb2, event_service_pb2
from tests.protos import contract
from tests.protos.contract import ROOT

BUF = Path(sys.executable).with_name("buf")


def built(target: Path, *arguments: str) -> bytes:
    subprocess.run(
        [BUF, "build", *arguments, "--as-file-descriptor-set", "--output", str(target)],
        cwd=ROOT,
        check=True,
    )
    return target.read_bytes()


def test_reflection_image_matches_the_protos(tmp_path: Path) -> None:
    fresh = built(tmp_path / "fresh.binpb", "--path", "protos/hookline")
    assert (ROOT / "service/hookline_service/api/descriptors.binpb").read_bytes() == fresh


def test_reflection_image_contains_every_import() -> None:
    image = FileDescriptorSet.FromString(
        (ROOT / "service/hookline_service/api/descriptors.binpb").read_bytes()
    )
    seen: set[str] = set()
    for file in image.file:
        assert set(file.dependency) <= seen, "an import must precede the file that needs it"
        seen.add(file.name)


@pytest.mark.parametrize("file", contract.files(), ids=lambda file: Path(file.name).stem)
def test_python_code_matches_the_protos(file: FileDescriptorProto) -> None:
    stem = file.name.removesuffix(".proto").replace("/", ".")
    module = importlib.import_module(f"{stem}_pb2")
    generated = FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
    expected = FileDescriptorProto()
    expected.CopyFrom(file)
    expected.ClearField("source_code_info")
    for text in (generated, expected):
        strip_json_names(text)
    assert generated == expected
    for service in file.service:
        assert hasattr(importlib.import_module(f"{stem}_pb2_grpc"), f"{service.name}Servicer")


def strip_json_names(message: Message) -> None:
    """Remove `json_name`, which only some compilers write although all derive the same value."""
    for field, value in message.ListFields():
        if field.name == "json_name":
            message.ClearField("json_name")
        elif isinstance(value, Message):
            strip_json_names(value)
        elif field.message_type is not None:
            for item in value:
                strip_json_names(item)


def test_every_module_has_its_types_beside_it() -> None:
    folder = ROOT / "clients/python/hookline/v1"
    code = {path.stem for path in folder.glob("*_pb2*.py")}
    types = {path.stem for path in folder.glob("*_pb2*.pyi")}
    assert len(code) == len(contract.files()) + len(contract.methods())
    assert code == types


def test_grpcurl_can_publish_as_the_documentation_says() -> None:
    text = (
        '{"tenant":"tenants/default",'
        '"events":[{"type":"order.created","json_data":"{\\"id\\":1}"}]}'
    )
    request = json_format.Parse(text, event_service_pb2.PublishEventsRequest())
    assert request.events[0].WhichOneof("data") == "json_data"
    assert json.loads(request.events[0].json_data) == {"id": 1}
    result = event_service_pb2.PublishResult(name="n", deduplicated=False, delivery_count=0)
    assert json_format.MessageToDict(result) == {
        "name": "n",
        "deduplicated": False,
        "deliveryCount": 0,
    }


def test_the_example_contracts_declare_event_types_with_examples(tmp_path: Path) -> None:
    image = FileDescriptorSet.FromString(built(tmp_path / "examples.binpb", "protos/examples"))
    pool = descriptor_pool.DescriptorPool()
    for file in image.file:
        pool.AddSerializedFile(file.SerializeToString())
    declared = {}
    for file in image.file:
        for message in file.message_type:
            if message.options.HasExtension(annotations_pb2.event_type):
                full_name = f"{file.package}.{message.name}"
                declared[full_name] = message.options.Extensions[annotations_pb2.event_type]
    assert {name: option.event_type_id for name, option in declared.items()} == {
        "platform.user.v1.UserRegistered": "user.registered",
        "platform.order.v1.OrderCreated": "order.created",
    }
    for name, option in declared.items():
        kind = message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
        example = json_format.Parse(option.example_json, kind(), descriptor_pool=pool)
        assert json_format.MessageToDict(example) == json.loads(option.example_json)


def test_generate_check_reports_the_differences() -> None:
    differences = runpy.run_path(str(ROOT / "protos/generate.py"))["differences"]
    same, changed, stale, missing = (Path(name) for name in ("same", "changed", "stale", "new"))
    committed = {same: b"1", changed: b"2", stale: b"3"}
    assert differences(committed, committed) == []
    assert differences(committed, {same: b"1", changed: b"x", missing: b"4"}) == [
        "new is missing",
        "stale belongs to no proto",
        "changed differs from the generated content",
    ]
