"""TLS as operators meet it: openssl, a real grpcurl, the command line, against `hookline serve`."""

from __future__ import annotations

import asyncio
import json
import pathlib
import ssl
import subprocess
from collections.abc import Iterator

import pytest
from cryptography import x509

from tests.certificates import Authority
from tests.e2e.processes import Node, run_hookline
from tests.e2e.test_serve import settings
from tests.waiting import until

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def authority(tmp_path: pathlib.Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def variables(database_url: str, authority: Authority) -> dict[str, str]:
    """A node that serves TLS."""
    certificate, key = authority.issue("server", "hookline.internal", "127.0.0.1")
    return settings(database_url) | {
        "HOOKLINE_TLS_CERT": str(certificate),
        "HOOKLINE_TLS_KEY": str(key),
    }


@pytest.fixture
def node(variables: dict[str, str]) -> Iterator[Node]:
    with Node(["serve"], variables) as node:
        yield node.ready()
        assert node.stop() == 0


@pytest.fixture
def strict_node(variables: dict[str, str], authority: Authority) -> Iterator[Node]:
    """One that asks its clients for certificates."""
    asks = {"HOOKLINE_TLS_CLIENT_CA": str(authority.file)}
    with Node(["serve"], variables | asks) as node:
        yield node.ready()
        assert node.stop() == 0


def run(*command: str | pathlib.Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",  # openssl prints frames of HTTP/2 as they come
        check=False,
        timeout=60,
    )


def s_client(node: Node, *arguments: str | pathlib.Path) -> subprocess.CompletedProcess[str]:
    return run("openssl", "s_client", "-connect", node.target, "-alpn", "h2", *arguments)


@pytest.mark.parametrize("version, named", [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")])
def test_openssl_verifies_the_service(
    node: Node, authority: Authority, version: str, named: str
) -> None:
    done = s_client(
        node, "-CAfile", authority.file, "-verify_return_error",
        "-verify_hostname", "hookline.internal", version,
    )  # fmt: skip
    assert "Verification: OK" in done.stdout
    assert f"New, {named}, Cipher is" in done.stdout
    assert "ALPN protocol: h2" in done.stdout


def test_older_versions_of_tls_are_not_spoken(node: Node) -> None:
    done = s_client(node, "-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0")
    assert done.returncode != 0
    assert "Cipher is (NONE)" in done.stdout


def test_grpcurl_lists_calls_and_checks_health(
    node: Node, authority: Authority, grpcurl: pathlib.Path
) -> None:
    trusting = (grpcurl, "-cacert", authority.file)
    assert "hookline.v1.EventService" in run(*trusting, node.target, "list").stdout
    health = run(*trusting, node.target, "grpc.health.v1.Health/Check")
    assert json.loads(health.stdout) == {"status": "SERVING"}
    published = run(
        *trusting, "-d", '{"tenant":"tenants/default","events":[{"type":"a.b","json_data":"{}"}]}',
        node.target, "hookline.v1.EventService/PublishEvents",
    )  # fmt: skip
    assert json.loads(published.stdout)["results"][0]["deliveryCount"] == 0


def test_plaintext_is_refused(node: Node, grpcurl: pathlib.Path) -> None:
    done = run(grpcurl, "-plaintext", "-connect-timeout", "5", node.target, "list")
    assert done.returncode != 0
    done = run_hookline("status", "--server", node.target)
    assert done.returncode == 1
    assert done.stderr == (
        f"hookline: {node.target} closes the connection: it may serve TLS (--ca), or require a"
        " certificate (--cert, --key)\n"
    )


def test_status_over_tls(node: Node, authority: Authority) -> None:
    done = run_hookline("status", "--server", node.target, "--ca", str(authority.file))
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("follows")]
    assert line.startswith(
        "follows  HOOKLINE_TLS_CERT  certificate of hookline.internal, 127.0.0.1  expires in "
    )
    by_variables = run_hookline(
        "status",
        variables={
            "HOOKLINE_SERVER": f"localhost:{node.target.rpartition(':')[2]}",
            "HOOKLINE_SERVER_CA": str(authority.file),
            "HOOKLINE_SERVER_NAME": "hookline.internal",
        },
    )
    assert by_variables.returncode == 0, by_variables.stderr


def test_what_does_not_fit_is_a_sentence(
    node: Node, authority: Authority, tmp_path: pathlib.Path
) -> None:
    foreign = Authority(tmp_path, "foreign")
    ca, other_ca = str(authority.file), str(foreign.file)
    for arguments, message in (
        (["--ca", other_ca], "of an authority that is not trusted here"),
        (["--ca", ca, "--server-name", "other.internal"], "certificate for another name"),
        (["--ca", str(tmp_path / "none.pem")], "none.pem cannot be read: No such file"),
        (["--ca", str(tmp_path / "server.new"), "--key", ca], "--cert and --key must be"),
    ):
        done = run_hookline("status", "--server", node.target, *arguments)
        assert done.returncode in {1, 2}
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_clients_show_certificates_where_the_service_asks_for_them(
    strict_node: Node, authority: Authority, grpcurl: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    friend = authority.issue("client", "shop.internal")
    foreign = Authority(tmp_path, "foreign").issue("foreign", "shop.internal")
    target, trusting = strict_node.target, (grpcurl, "-cacert", authority.file)

    def listed(*files: pathlib.Path) -> subprocess.CompletedProcess[str]:
        shown = ("-cert", files[0], "-key", files[1]) if files else ()
        return run(*trusting, *shown, "-connect-timeout", "5", target, "list")

    assert "hookline.v1.EventService" in listed(*friend).stdout
    assert listed().returncode != 0
    assert listed(*foreign).returncode != 0
    done = s_client(strict_node, "-CAfile", authority.file, "-cert", friend[0], "-key", friend[1])
    assert "Requested Signature Algorithms" in done.stdout
    cert, key = map(str, friend)
    ours = ["status", "--server", target, "--ca", str(authority.file)]
    assert run_hookline(*ours, "--cert", cert, "--key", key).returncode == 0
    refused = run_hookline(*ours)
    assert refused.returncode == 1
    assert "require a certificate" in refused.stderr


async def shown_serial(node: Node, authority: Authority) -> int:
    """The serial number of the certificate that a new connection is shown."""
    host, _, port = node.target.rpartition(":")
    context = ssl.create_default_context(cafile=authority.file)
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(der).serial_number


def serial_of(certificate: pathlib.Path) -> int:
    return x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number


async def test_every_process_takes_a_new_certificate_and_keeps_the_old_where_it_is_broken(
    variables: dict[str, str], authority: Authority
) -> None:
    count = 3
    with Node(["serve"], variables | {"HOOKLINE_WORKERS": str(count)}) as node:
        node.ready()
        first = await shown_serial(node, authority)
        certificate, _ = authority.issue("server", "hookline.internal", "127.0.0.1")
        second = serial_of(certificate)
        assert first != second

        async def all_show_it() -> bool:
            # The kernel deals connections out by their source's port: so many meet them all.
            shown = await asyncio.gather(*[shown_serial(node, authority) for _ in range(24)])
            return set(shown) == {second}

        await until(all_show_it, "each process shows the new certificate")

        good = certificate.read_bytes()
        certificate.write_bytes(good[: len(good) // 2])

        def status() -> str:
            asked = run_hookline("status", "--server", node.target, "--ca", str(authority.file))
            assert asked.returncode == 0, asked.stderr
            return asked.stdout

        def is_reported() -> bool:
            return "is not in use: HOOKLINE_TLS_CERT names" in status()

        await until(is_reported, "status shows that the new file is broken", within_s=40)
        assert await shown_serial(node, authority) == second
        certificate.write_bytes(good)
        await until(lambda: "is not in use" not in status(), "it is mended", within_s=40)
        assert node.stop() == 0
    assert node.text.count('"source_reloaded"') == count
    refusals = node.text.count('"source_rejected"')
    assert 1 <= refusals <= count, "each process says so once"


def test_mismatched_files_are_reported_before_the_start(
    variables: dict[str, str], tmp_path: pathlib.Path
) -> None:
    _, key = Authority(tmp_path, "another").issue("another", "127.0.0.1")
    refused = run_hookline("serve", variables=variables | {"HOOKLINE_TLS_KEY": str(key)})
    assert refused.returncode == 2
    assert "HOOKLINE_TLS_KEY names" in refused.stderr
    assert "issued together" in refused.stderr
