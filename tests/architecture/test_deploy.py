"""What deploy/ promises: images by digest, TLS, secrets in files, no privilege.

The formats are checked by `make check`, the image by `make image-check`. Here is what neither says.
"""

import os
import pathlib
import re
import shutil
import subprocess

import pytest

from tests.architecture.repository import ROOT, text

DEPLOY = pathlib.PurePosixPath("deploy")
COMPOSE = text(DEPLOY / "compose.yaml")
DEPLOYMENT = text(DEPLOY / "kubernetes/deployment.yaml")
KUSTOMIZATION = text(DEPLOY / "kubernetes/kustomization.yaml")
MANIFESTS = [
    path.relative_to(ROOT) for path in sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
]
BUILT = "hookline"
"""The image that is made here; its digest is known where it is pushed to."""


def values(name: str, yaml: str) -> list[str]:
    """What a key is set to, wherever it is."""
    return re.findall(rf"^\s*(?:- )?{name}: *(\S.*)$", yaml, re.MULTILINE)


def unpinned(yaml: str) -> list[str]:
    """The images that are named by a tag, or by nothing."""
    return [
        image
        for image in values("image", yaml)
        if image != BUILT
        and not re.fullmatch(r"\$\{[A-Z]+_IMAGE:\?[^}]+\}", image)
        and not re.search(r"@sha256:[0-9a-f]{64}$", image)
    ]


@pytest.mark.parametrize("path", ["compose.yaml", *[f"kubernetes/{one.name}" for one in MANIFESTS]])
def test_no_image_is_named_by_a_tag(path: str) -> None:
    assert unpinned(text(DEPLOY / path)) == []


def test_a_tag_would_be_seen() -> None:
    tagged = ["image: postgres:18", "  - image: hookline:latest", "image: ${POSTGRES_IMAGE:-a:1}"]
    assert len(unpinned("\n".join(tagged))) == 3
    assert unpinned(f"image: postgres@sha256:{'0' * 64}") == []


def test_the_image_of_the_pods_is_named_by_its_digest() -> None:
    assert "newTag" not in KUSTOMIZATION
    (digest,) = values("digest", KUSTOMIZATION)
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", digest)


def test_every_image_of_compose_is_pinned_by_the_script() -> None:
    listed = dict(line.split() for line in text(DEPLOY / "images.txt").splitlines())
    asked = set(re.findall(r"\$\{([A-Z]+_IMAGE):\?", COMPOSE))
    assert asked == listed.keys()
    (base,) = re.findall(r"^ARG BASE=(\S+)$", text(DEPLOY / "Dockerfile"), re.MULTILINE)
    assert listed["PYTHON_IMAGE"] == base


@pytest.mark.parametrize("answer, code", [("a/b@sha256:12", 0), ("<no value>", 1)])
def test_the_script_writes_what_the_engine_says_and_nothing_without_a_digest(
    tmp_path: pathlib.Path, answer: str, code: int
) -> None:
    for name in ("pin-images", "images.txt"):
        (tmp_path / name).write_bytes((ROOT / "deploy" / name).read_bytes())
    engine = tmp_path / "engine"
    engine.write_text(f"#!/bin/sh\n[ $1 = pull ] || echo '{answer}'\n")
    engine.chmod(0o755)
    (tmp_path / ".env").write_text("COMPOSE_USER=1:1\nPOSTGRES_IMAGE=old\n")
    done = subprocess.run(
        ["sh", tmp_path / "pin-images"],
        env={"PATH": os.environ["PATH"], "ENGINE": str(engine)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    written = (tmp_path / ".env").read_text()
    assert "COMPOSE_USER=1:1\n" in written
    assert ("POSTGRES_IMAGE=a/b@sha256:12\n" in written) == (code == 0)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_the_secrets_of_compose_are_made_by_the_script_for_its_user_alone(
    tmp_path: pathlib.Path,
) -> None:
    script = tmp_path / "make-secrets"
    script.write_bytes((ROOT / "deploy" / script.name).read_bytes())
    for _ in range(2):
        subprocess.run(["sh", script], check=True, capture_output=True)
    wanted = set(re.findall(r"file: \./secrets/(\S+)", COMPOSE))
    assert wanted <= {path.name for path in (tmp_path / "secrets").iterdir()}
    for path in (tmp_path / "secrets").iterdir():
        assert path.stat().st_mode & 0o777 == 0o400
    password = (tmp_path / "secrets/postgres-password").read_text().strip()
    assert f":{password}@postgres:" in (tmp_path / "secrets/database-url").read_text()
    user = f"{os.getuid()}:{os.getgid()}" if os.getuid() else "10001:10001"
    assert (tmp_path / ".env").read_text() == f"COMPOSE_USER={user}\n"


def test_nothing_is_served_in_plaintext_and_no_secret_is_in_an_environment() -> None:
    for yaml in (COMPOSE, DEPLOYMENT, KUSTOMIZATION):
        assert "ALLOW_PLAINTEXT" not in yaml
        assert "secretKeyRef" not in yaml
        assert not re.search(r"(?:DATABASE_URL|MASTER_KEY|PASSWORD)[:=]", yaml)
    for yaml in (COMPOSE, KUSTOMIZATION):
        for name in ("MASTER_KEY_FILE", "DATABASE_URL_FILE", "TLS_CERT", "TLS_KEY", "SERVER_CA"):
            assert f"HOOKLINE_{name}" in yaml


def test_pods_have_no_privilege() -> None:
    for name, value in {
        "runAsNonRoot": "true",
        "automountServiceAccountToken": "false",
        "enableServiceLinks": "false",
        "allowPrivilegeEscalation": "false",
        "privileged": "false",
        "readOnlyRootFilesystem": "true",
        "drop": "[ALL]",
        "type": "RuntimeDefault",
    }.items():
        assert values(name, DEPLOYMENT) == [value]
    containers = len(values("image", DEPLOYMENT))
    assert DEPLOYMENT.count("securityContext: *locked") == containers - 1
    assert DEPLOYMENT.count("securityContext: &locked") == 1
    assert values("defaultMode", DEPLOYMENT) == ["0440", "0440"]
    network = text(DEPLOY / "kubernetes/network.yaml")
    assert "policyTypes: [Ingress, Egress]" in network
    assert "169.254.0.0/16" in network
