"""Server reflection, v1 and v1alpha, that answers with comments.

The library's servicer serves descriptors from a pool, which drops source information, and supports
v1alpha only. This one serves the files of the `buf build` image beside it (`descriptors.binpb`)
unchanged; a pool is used to find them. The messages of both versions are the same on the wire.

Source: grpc/reflection/v1/reflection.proto.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from importlib import resources

import grpc
from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

SERVICES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")

_Request = reflection_pb2.ServerReflectionRequest
_Response = reflection_pb2.ServerReflectionResponse


class Descriptors:
    """Proto files by name, symbol and extension, each returned with its dependencies."""

    def __init__(self, files: Iterable[FileDescriptorProto]) -> None:
        self._files = {file.name: file for file in files}
        self._serialized = {name: file.SerializeToString() for name, file in self._files.items()}
        self._pool = DescriptorPool()
        added: set[str] = set()
        for name in self._files:
            for needed in self._with_dependencies(name):
                if needed not in added:
                    added.add(needed)
                    self._pool.AddSerializedFile(self._serialized[needed])

    def file(self, name: str) -> list[bytes]:
        """Return a file and its dependencies, serialised, itself last. Raise KeyError."""
        return [self._serialized[needed] for needed in self._with_dependencies(name)]

    def file_of_symbol(self, symbol: str) -> list[bytes]:
        """Return the file that defines a message, enum, service or method. Raise KeyError."""
        try:
            return self.file(self._pool.FindFileContainingSymbol(symbol).name)
        except KeyError:
            # The pool finds services by name, and methods only through their service.
            service, _, method = symbol.rpartition(".")
            descriptor = self._pool.FindServiceByName(service)
            return self.file(descriptor.methods_by_name[method].containing_service.file.name)

    def file_of_extension(self, extended: str, number: int) -> list[bytes]:
        """Return the file that defines an extension of a message. Raise KeyError."""
        message = self._pool.FindMessageTypeByName(extended)
        return self.file_of_symbol(self._pool.FindExtensionByNumber(message, number).full_name)

    def extension_numbers(self, extended: str) -> list[int]:
        """Return the numbers of all extensions of a message. Raise KeyError."""
        message = self._pool.FindMessageTypeByName(extended)
        return sorted(extension.number for extension in self._pool.FindAllExtensions(message))

    def _with_dependencies(self, name: str) -> list[str]:
        ordered: dict[str, None] = {}

        def visit(current: str) -> None:
            if current not in ordered:
                for dependency in self._files[current].dependency:
                    visit(dependency)
                ordered[current] = None

        visit(name)
        return list(ordered)


def contract() -> Descriptors:
    """Return the descriptors of the contract with its comments, errors, health and reflection."""
    image = resources.files("hookline_service.api").joinpath("descriptors.binpb").read_bytes()
    files = list(FileDescriptorSet.FromString(image).file)
    for module in (error_details_pb2, status_pb2, health_pb2, reflection_pb2):
        files.append(FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb))  # noqa: PERF401
    files.append(_v1_of(files[-1]))
    return Descriptors(files)


def _v1_of(v1alpha: FileDescriptorProto) -> FileDescriptorProto:
    """Return the v1 file: v1alpha's with the other package name, the only difference."""
    renamed = text_format.MessageToString(v1alpha).replace("v1alpha", "v1")
    return text_format.Parse(renamed, FileDescriptorProto())


class ReflectionServicer:
    """Answers a stream of questions in order."""

    def __init__(self, descriptors: Descriptors, services: Sequence[str]) -> None:
        self._descriptors = descriptors
        self._services = sorted(services)

    async def ServerReflectionInfo(
        self, requests: AsyncIterator[_Request], context: object
    ) -> AsyncIterator[_Response]:
        """Answer each question in order; an unknown symbol is answered, not raised."""
        del context
        async for request in requests:
            response = _Response(valid_host=request.host, original_request=request)
            try:
                self._answer(request, response)
            except KeyError:
                _refuse(response, grpc.StatusCode.NOT_FOUND, "no such symbol, file or extension")
            yield response

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """Return the handlers of both versions, which behave the same."""
        handler = grpc.stream_stream_rpc_method_handler(
            self.ServerReflectionInfo,
            request_deserializer=_Request.FromString,
            response_serializer=_Response.SerializeToString,
        )
        return [
            grpc.method_handlers_generic_handler(service, {"ServerReflectionInfo": handler})
            for service in SERVICES
        ]

    def _answer(self, request: _Request, response: _Response) -> None:
        files: list[bytes] = []
        match request.WhichOneof("message_request"):
            case "list_services":
                for service in self._services:
                    response.list_services_response.service.add(name=service)
            case "file_by_filename":
                files = self._descriptors.file(request.file_by_filename)
            case "file_containing_symbol":
                files = self._descriptors.file_of_symbol(request.file_containing_symbol)
            case "file_containing_extension":
                extension = request.file_containing_extension
                files = self._descriptors.file_of_extension(
                    extension.containing_type, extension.extension_number
                )
            case "all_extension_numbers_of_type":
                extended = request.all_extension_numbers_of_type
                numbers = self._descriptors.extension_numbers(extended)
                response.all_extension_numbers_response.base_type_name = extended
                response.all_extension_numbers_response.extension_number.extend(numbers)
            case _:
                _refuse(response, grpc.StatusCode.INVALID_ARGUMENT, "the request asks nothing")
        if files:
            response.file_descriptor_response.file_descriptor_proto.extend(files)


def _refuse(response: _Response, code: grpc.StatusCode, message: str) -> None:
    response.error_response.error_code = code.value[0]
    response.error_response.error_message = message
