"""Generates the committed files: the Python client's code, and the image that reflection serves.

Run it in the environment that has buf; the generators are installed in `.tools/codegen` by
`make codegen`. Without an argument it writes the files. `--check` writes nothing and fails if the
committed files differ. `--release` replaces the image that `buf breaking` compares with.

Use only this script: plain protoc produces different bytes.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUF = Path(sys.executable).with_name("buf")
CODEGEN = ROOT / ".tools/codegen/bin/python"
CONTRACT = "protos/hookline"
"""The path of the contract, without the examples: no code is generated for them."""

CODE = Path("clients/python/hookline/v1")
DESCRIPTORS = Path("service/hookline_service/api/descriptors.binpb")
"""With source information, so that grpcurl's `describe` shows the comments."""
RELEASED = Path("protos/released.binpb")
"""The released contract, which must not break. Only a release replaces it."""


def buf(*arguments: str) -> None:
    """Run buf in the root of the repository; raise CalledProcessError if it fails."""
    subprocess.run([BUF, *arguments], cwd=ROOT, check=True)


def generate(into: Path) -> None:
    """Generate all files below `into`, with the same relative paths as in the repository."""
    buf("generate", "--path", CONTRACT, "--output", str(into))
    for stub in (into / CODE).glob("*_pb2_grpc.pyi"):
        if not stub.with_suffix(".py").exists():
            stub.unlink()  # the proto has no service, so the module itself is not generated
    descriptors = into / DESCRIPTORS
    descriptors.parent.mkdir(parents=True)
    buf("build", "--path", CONTRACT, "--as-file-descriptor-set", "--output", str(descriptors))


def generated(root: Path) -> dict[Path, bytes]:
    """Return the content of every generated file below a root, by relative path."""
    code = [path for path in (root / CODE).glob("*_pb2*") if path.suffix in {".py", ".pyi"}]
    files = [path for path in [*code, root / DESCRIPTORS] if path.exists()]
    return {path.relative_to(root): path.read_bytes() for path in files}


def differences(committed: dict[Path, bytes], fresh: dict[Path, bytes]) -> list[str]:
    """Describe each missing, superfluous or different file in one line."""
    missing = fresh.keys() - committed.keys()
    stale = committed.keys() - fresh.keys()
    changed = [path for path in fresh.keys() - missing if fresh[path] != committed[path]]
    return [
        *(f"{path} is missing" for path in sorted(missing)),
        *(f"{path} belongs to no proto" for path in sorted(stale)),
        *(f"{path} differs from the generated content" for path in sorted(changed)),
    ]


def write(committed: dict[Path, bytes], fresh: dict[Path, bytes]) -> None:
    """Replace the committed files by the generated ones."""
    for path in committed.keys() - fresh.keys():
        (ROOT / path).unlink()
    for path, content in fresh.items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_bytes(content)


def main() -> int:
    """Write, check or release; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="write nothing, fail on a difference")
    mode.add_argument("--release", action="store_true", help=f"replace {RELEASED}")
    chosen = parser.parse_args()
    if chosen.release:
        target = str(ROOT / RELEASED)
        buf("build", "--path", CONTRACT, "--exclude-source-info", "--output", target)
        return 0
    if not CODEGEN.exists():
        print(f"{CODEGEN.relative_to(ROOT)} is missing: run `make codegen`", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        committed, fresh = generated(ROOT), generated(Path(folder))
    changes = differences(committed, fresh)
    for change in changes:
        print(change if chosen.check else f"{change}: written")
    if not chosen.check:
        write(committed, fresh)
        return 0
    if changes:
        print("Run `make generate` and commit the result.", file=sys.stderr)
    return 1 if changes else 0


if __name__ == "__main__":
    sys.exit(main())
