"""The contract passes `buf lint`, and is compatible with the released contract.

Each rule is also broken in a copy, to prove that the check can fail.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.protos.contract import ROOT

BUF = Path(sys.executable).with_name("buf")
BREAKING = ("breaking", "--against", "protos/released.binpb")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    return tmp_path


def buf(where: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run([BUF, *arguments], cwd=where, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert re.search(old, text)
    path.write_text(re.sub(old, new, text, count=1))


def test_contract_passes_buf_lint_and_format() -> None:
    assert buf(ROOT, "lint") == (0, "")
    assert buf(ROOT, "format", "--diff", "--exit-code") == (0, "")


def test_buf_configuration_has_no_exceptions() -> None:
    settings = (ROOT / "buf.yaml").read_text()
    assert re.findall(r"^  use:\n((?:    - .+\n)+)", settings, re.MULTILINE) == [
        "    - STANDARD\n    - COMMENTS\n",
        "    - FILE\n",
    ]
    assert not re.search(r"\b(except|ignore|ignore_only)\b", settings)
    protos = [path.read_text() for path in (ROOT / "protos").rglob("*.proto")]
    assert not any("buf:lint:ignore" in text for text in protos)


def test_buf_rejects_a_field_without_a_comment(copy: Path) -> None:
    tenant = copy / "protos/hookline/v1/tenant.proto"
    change(tenant, r"  // Output only\. When it was created\.\n", "")
    code, output = buf(copy, "lint")
    assert code != 0
    assert "tenant.proto" in output
    assert "create_time" in output


def test_contract_is_compatible_with_the_released_image() -> None:
    assert buf(ROOT, *BREAKING) == (0, "")


def without_a_field(folder: Path) -> None:
    change(folder / "tenant.proto", r"  string display_name = 3;\n", "")


def with_another_type(folder: Path) -> None:
    change(folder / "attempt.proto", "int32 http_status = 5", "int64 http_status = 5")


def without_an_enum_value(folder: Path) -> None:
    change(folder / "delivery.proto", r"  DELIVERY_STATE_EXPIRED = 5;\n", "")


def without_an_rpc(folder: Path) -> None:
    change(folder / "tenant_service.proto", r"  rpc GetTenant\(.*\n", "")


def without_a_file(folder: Path) -> None:
    (folder / "operations_service.proto").unlink()


@pytest.mark.parametrize(
    "mutate, complaint",
    [
        (without_a_field, '"display_name" on message "Tenant" was deleted'),
        (with_another_type, 'from "int32" to "int64"'),
        (without_an_enum_value, 'enum value "5" on enum "DeliveryState" was deleted'),
        (without_an_rpc, '"GetTenant"'),
        (without_a_file, 'file "hookline/v1/operations_service.proto" was deleted'),
    ],
)
def test_buf_reports_a_breaking_change(
    copy: Path, mutate: Callable[[Path], None], complaint: str
) -> None:
    mutate(copy / "protos/hookline/v1")
    code, output = buf(copy, *BREAKING)
    assert code != 0
    assert complaint in output
