"""A `protoc-gen-grpc_python` plugin: grpcio-tools contains this generator only built in.

Translates a request of the plugin protocol into a call of `grpc_tools.protoc`, and its files into
the response. Files without a service get no output, because it would be an empty module.
"""

import sys
import tempfile
from pathlib import Path

from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest, CodeGeneratorResponse
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc


def respond(request: CodeGeneratorRequest) -> CodeGeneratorResponse:
    """Generate `_pb2_grpc.py` for the requested files that have services."""
    response = CodeGeneratorResponse()
    response.supported_features = CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL
    wanted = set(request.file_to_generate)
    files = [file.name for file in request.proto_file if file.name in wanted and file.service]
    with tempfile.TemporaryDirectory() as folder:
        descriptors, out = Path(folder, "descriptors.binpb"), Path(folder, "out")
        out.mkdir()
        descriptors.write_bytes(FileDescriptorSet(file=request.proto_file).SerializeToString())
        arguments = [f"--descriptor_set_in={descriptors}", f"--grpc_python_out={out}", *files]
        if files and protoc.main(["protoc", *arguments]):
            response.error = "grpc_tools.protoc failed; see its message above"
        for path in sorted(out.rglob("*.py")):
            name = path.relative_to(out).as_posix()
            response.file.add(name=name, content=path.read_text("utf-8"))
    return response


if __name__ == "__main__":
    request = CodeGeneratorRequest.FromString(sys.stdin.buffer.read())
    sys.stdout.buffer.write(respond(request).SerializeToString())
