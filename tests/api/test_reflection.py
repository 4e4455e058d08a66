"""Reflection as clients use it: both versions, comments, error details; by hand and by grpcurl."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.reflection_pb2 import (
    ExtensionRequest,
    ServerReflectionRequest,
    ServerReflectionResponse,
)

from hookline_service.api.server import CONTRACT_SERVICES
from tests.api.conftest import Api

VERSIONS = ("v1", "v1alpha")
EXPECTED_SERVICES = {
    *CONTRACT_SERVICES,
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
}


async def ask(
    api: Api, *questions: ServerReflectionRequest, version: str = "v1"
) -> list[ServerReflectionResponse]:
    """The answers of one stream."""
    method = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    call: Any = api.channel.stream_stream(
        method,
        request_serializer=ServerReflectionRequest.SerializeToString,
        response_deserializer=ServerReflectionResponse.FromString,
    )

    async def asked() -> AsyncIterator[ServerReflectionRequest]:
        for question in questions:
            yield question

    return [answer async for answer in call(asked(), timeout=20)]


def files_in(answer: ServerReflectionResponse) -> dict[str, FileDescriptorProto]:
    raw = answer.file_descriptor_response.file_descriptor_proto
    return {file.name: file for file in map(FileDescriptorProto.FromString, raw)}


@pytest.mark.parametrize("version", VERSIONS)
async def test_all_services_are_listed(api: Api, version: str) -> None:
    [answer] = await ask(api, ServerReflectionRequest(list_services="*"), version=version)
    listed = {service.name for service in answer.list_services_response.service}
    assert listed == EXPECTED_SERVICES


@pytest.mark.parametrize("version", VERSIONS)
async def test_every_service_is_described_completely_with_comments(api: Api, version: str) -> None:
    names = sorted(EXPECTED_SERVICES)
    questions = [ServerReflectionRequest(file_containing_symbol=name) for name in names]
    for name, answer in zip(names, await ask(api, *questions, version=version), strict=True):
        files = files_in(answer)
        pool = DescriptorPool()
        for file in files.values():  # dependencies first, as they are answered
            pool.Add(file)
        service: Any = pool.FindServiceByName(name)
        assert service.methods
        if name in CONTRACT_SERVICES:
            own = files[service.file.name]
            comments = [loc.leading_comments for loc in own.source_code_info.location]
            assert sum(1 for comment in comments if comment.strip()) > len(service.methods)


@pytest.mark.parametrize(
    "symbol",
    [
        "hookline.v1.Event",
        "hookline.v1.Event.AttributesEntry",
        "hookline.v1.EventService.PublishEvents",
        "hookline.v1.DeliveryState",
        "google.rpc.ErrorInfo",
        "google.rpc.BadRequest.FieldViolation",
        "google.rpc.Status",
        "google.protobuf.Timestamp",
    ],
)
async def test_symbols_are_found(api: Api, symbol: str) -> None:
    [answer] = await ask(api, ServerReflectionRequest(file_containing_symbol=symbol))
    pool = DescriptorPool()
    for file in files_in(answer).values():
        pool.Add(file)
    holder = symbol.removesuffix(".PublishEvents")  # a pool finds methods by their service alone
    assert pool.FindFileContainingSymbol(holder).name == list(files_in(answer))[-1]


async def test_files_and_extensions_are_found(api: Api) -> None:
    options = "google.protobuf.MessageOptions"
    by_name, by_extension, numbers = await ask(
        api,
        ServerReflectionRequest(file_by_filename="hookline/v1/event.proto", host="h"),
        ServerReflectionRequest(
            file_containing_extension=ExtensionRequest(
                containing_type=options, extension_number=51820
            )
        ),
        ServerReflectionRequest(all_extension_numbers_of_type=options),
    )
    assert "hookline/v1/event.proto" in files_in(by_name)
    assert (by_name.valid_host, by_name.original_request.host) == ("h", "h")
    assert "hookline/v1/annotations.proto" in files_in(by_extension)
    assert list(numbers.all_extension_numbers_response.extension_number) == [51820]


async def test_unknown_symbol_is_answered_and_the_stream_continues(api: Api) -> None:
    answers = await ask(
        api,
        ServerReflectionRequest(file_by_filename="no.proto"),
        ServerReflectionRequest(file_containing_symbol="hookline.v1.Nothing"),
        ServerReflectionRequest(file_containing_symbol="hookline.v1.EventService.Nothing"),
        ServerReflectionRequest(
            file_containing_extension=ExtensionRequest(containing_type="x", extension_number=1)
        ),
        ServerReflectionRequest(all_extension_numbers_of_type="x"),
        ServerReflectionRequest(),
        ServerReflectionRequest(list_services=""),
    )
    codes = [answer.error_response.error_code for answer in answers]
    assert codes == [5, 5, 5, 5, 5, 3, 0]
    assert answers[-1].list_services_response.service


async def grpcurl_says(grpcurl: pathlib.Path, api: Api, *arguments: str) -> str:
    """What grpcurl prints; fails where it fails."""
    process = await asyncio.create_subprocess_exec(
        grpcurl,
        "-plaintext",
        f"127.0.0.1:{api.port}",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return said.decode()


async def test_grpcurl_describe_shows_the_comments(api: Api, grpcurl: pathlib.Path) -> None:
    listed = await grpcurl_says(grpcurl, api, "list")
    assert set(listed.split()) == EXPECTED_SERVICES
    described = await grpcurl_says(grpcurl, api, "describe", "hookline.v1.Event")
    assert "// An event: something that happened." in described
    assert "string idempotency_key" in described
    for name in sorted(EXPECTED_SERVICES):
        assert name.rpartition(".")[2] in await grpcurl_says(grpcurl, api, "describe", name)
