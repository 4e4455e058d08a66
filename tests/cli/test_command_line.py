"""The command line: help, versions, wrong arguments, and commands without their service."""

import re
import subprocess

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata

from hookline import HooklineClient
from hookline.errors import error_of
from hookline_service import VERSION
from hookline_service.cli import main
from hookline_service.cli.failure import CommandError
from hookline_service.cli.parser import make_parser
from hookline_service.cli.server import ask
from tests.e2e.processes import HOOKLINE, environment, run_hookline

COMMANDS = [
    "dev",
    "serve",
    "migrate",
    "keys",
    "audit",
    "demo",
    "status",
    "health",
    "event",
    "listen",
]


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert re.findall(r"^    (\w+)  ", printed, re.MULTILINE) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_a_description(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) > 5


def test_no_argument_prints_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "the deliveries and attempts of an event" in capsys.readouterr().err


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"hookline {VERSION}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dve"],
        ["dev", "now"],
        ["dev", "--lis", "127.0.0.1:1"],
        ["event"],
        ["keys"],
        ["keys", "forget-master"],
        ["listen", "--port", "65536"],
        ["listen", "--answer", "199"],
        ["status", "--server"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_exit_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: hookline" in capsys.readouterr().err


def test_help_loads_neither_grpc_nor_a_database_driver() -> None:
    code = (
        "import sys\nfrom hookline_service.cli import main\n"
        "try:\n    main(['dev', '--help'])\nexcept SystemExit:\n    pass\n"
        "loaded = {'grpc', 'asyncpg', 'httpx', 'cryptography'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([HOOKLINE[0], "-P", "-c", code], check=True, env=environment())


@pytest.mark.parametrize("command", [["status"], ["event", "evt_1"]], ids=" ".join)
def test_an_unreachable_service_is_reported_in_one_sentence(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--server", "127.0.0.1:1"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("hookline: nothing answers at 127.0.0.1:1")
    assert len(printed.err.splitlines()) == 1


def test_a_timeout_names_the_processes_that_may_hang() -> None:
    async def questions(_client: HooklineClient) -> int:
        raise error_of(AioRpcError(StatusCode.DEADLINE_EXCEEDED, Metadata(), Metadata()))

    with pytest.raises(CommandError, match="did not answer in time"):
        ask(make_parser().parse_args(["status"]), questions)


def test_a_token_is_not_sent_in_plaintext_to_another_machine() -> None:
    refused = run_hookline(
        "status", "--server", "localhost.:1", variables={"HOOKLINE_TOKEN": "hk_1_x"}
    )
    assert refused.returncode in {1, 2}
    assert "hk_1_x" not in refused.stderr + refused.stdout


def test_listen_refuses_an_invalid_secret(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["listen", "--secret", "whsec_nonsense"]) == 2
    assert capsys.readouterr().err.startswith("hookline: --secret: ")
