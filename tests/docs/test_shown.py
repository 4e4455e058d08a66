"""Shell blocks that are not run are at least accepted by the shell, the CLI and the contract."""

import pathlib
import re
import shlex
import subprocess

import pytest
from google.protobuf import descriptor_pool, json_format, message_factory

from hookline_service.api.server import CONTRACT_SERVICES
from hookline_service.cli.parser import make_parser
from hookline_service.config import Settings
from hookline_service.config.otel import VARIABLES as OTEL_VARIABLES
from hookline_service.config.reading import NOT_OURS
from hookline_service.identity.client_names import read_client_names
from tests.architecture.repository import files, text
from tests.docs.pages import Block, page, pages

SHELL = [block for each in pages() for block in each.blocks() if block.language == "sh"]
_COMMAND = re.compile(r"(?:^|\| |exec hookline )(hookline [a-z][^|>#\n]*)", re.MULTILINE)
_CALL = re.compile(r"-d '(\{.*?\})'\s+(?:\\\n\s+)?\S+ (hookline\.v1\.\w+)/(\w+)", re.DOTALL)
_VARIABLE = re.compile(r"\b(HOOKLINE_[A-Z0-9_]*[A-Z0-9]|OTEL_[A-Z_]*[A-Z])\b(?![_…])")
_OF_THE_EXPORTER = "OTEL_EXPORTER_OTLP_"


def place_of(block: Block) -> str:
    return block.place


@pytest.mark.parametrize("block", SHELL, ids=place_of)
def test_shell_block_has_valid_syntax(block: Block) -> None:
    read = subprocess.run(
        ["/bin/sh", "-n"], input=block.text, capture_output=True, text=True, check=False
    )
    assert (read.returncode, read.stderr) == (0, "")


@pytest.mark.parametrize("block", SHELL, ids=place_of)
def test_hookline_commands_are_accepted_by_the_parser(block: Block) -> None:
    for command in _COMMAND.findall(block.text):
        make_parser().parse_args(shlex.split(command)[1:])  # SystemExit: not accepted


def test_shell_blocks_contain_commands_and_calls() -> None:
    commands = [command for block in SHELL for command in _COMMAND.findall(block.text)]
    assert len(commands) > 10
    assert sum(len(_CALL.findall(block.text)) for block in SHELL) >= 1


@pytest.mark.parametrize("block", SHELL, ids=place_of)
def test_grpcurl_calls_are_valid_requests(block: Block) -> None:
    pool = descriptor_pool.Default()
    for request, service, name in _CALL.findall(block.text):
        assert service in CONTRACT_SERVICES
        method = pool.FindServiceByName(service).methods_by_name[name]
        json_format.Parse(request, message_factory.GetMessageClass(method.input_type)())


def test_named_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text(pathlib.PurePosixPath("Makefile")), re.MULTILINE))
    named = {
        target
        for each in pages()
        for code in [*each.code(), *(block.text for block in each.blocks())]
        for target in re.findall(r"(?:^|\s)make ([a-z]+(?:-[a-z]+)*)\b", code)
    }
    assert len(named) > 8
    assert named - targets == set()


def test_named_variables_are_read() -> None:
    known = {*Settings.variables(), *NOT_OURS, *OTEL_VARIABLES}
    known |= {
        "HOOKLINE_TEST_FAULTS",
        "HOOKLINE_TEST_FUZZ",
        "HOOKLINE_TEST_ENGINE",
        "OTEL_RESOURCE_ATTRIBUTES",
    }
    texts = {str(each.path): each.text for each in pages()}
    texts |= {str(path): text(path) for path in files() if path.parts[0] == "deploy"}
    unknown = {
        f"{place}: {name}"
        for place, written in texts.items()
        for name in _VARIABLE.findall(written)
        if name not in known and not name.startswith(_OF_THE_EXPORTER)
    }
    assert unknown == set()


def test_documented_client_names_file_is_accepted(tmp_path_factory: pytest.TempPathFactory) -> None:
    (shown,) = [b for b in page("docs/production.md").blocks() if b.language == "toml"]
    path = tmp_path_factory.mktemp("shown") / "clients.toml"
    path.write_text(shown.text, encoding="utf-8")
    assert read_client_names(path).summary
