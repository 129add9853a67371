"""Collect the wheels that `run.sh` carries to a machine without a package index.

    python -m gpu.collect_wheels build/gpu-wheels

`wheels.txt` names the packages, `present.txt` those that the machine itself must have, and
`constraints.txt` the versions. Fails when the wheels do not fit that Python, when one needs a
package that neither list has, or when wheels and tree are too large to carry.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from email.parser import HeaderParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from gpu.environment import EXTRAS, ROOT, requirements

HERE = Path(__file__).parent
MIB = 2**20
MOST_MIB = 60
"""Maximum of wheels and tree together; the machine takes 64."""
TARGET = {
    "python_version": "3.12", "python_full_version": "3.12.3", "implementation_name": "cpython",
    "platform_python_implementation": "CPython", "platform_machine": "x86_64",
    "sys_platform": "linux", "platform_system": "Linux", "os_name": "posix",
}  # fmt: skip
"""The target platform, as environment markers."""
GLIBC = ("2_28", "2_27", "2_24", "2_17", "2_12", "2_5")
PLATFORMS = (*(f"manylinux_{version}_x86_64" for version in GLIBC), "manylinux2014_x86_64",
             "manylinux2010_x86_64", "manylinux1_x86_64")  # fmt: skip
FITTING = ("--python-version", TARGET["python_version"], "--implementation", "cp",
           "--only-binary", ":all:", "--no-deps",
           *(word for platform in PLATFORMS for word in ("--platform", platform)))  # fmt: skip


def names(file: str) -> list[str]:
    """Return the packages that a list names."""
    lines = (HERE / file).read_text("utf-8").splitlines()
    return [canonicalize_name(line) for line in lines if line and not line.startswith("#")]


def pins() -> dict[str, str]:
    """Return our version of each package."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return {canonicalize_name(name): version for name, version in pairs}


def download(directory: Path) -> None:
    """Download missing wheels, and remove those that are no longer needed."""
    versions = pins()
    wanted = {name: versions[name] for name in names("wheels.txt")}
    directory.mkdir(parents=True, exist_ok=True)
    there = {}
    for file in directory.glob("*.whl"):
        name, version, *_ = parse_wheel_filename(file.name)
        if wanted.get(name) == str(version):
            there[name] = file
        else:
            file.unlink()
    missing = [f"{name}=={version}" for name, version in wanted.items() if name not in there]
    if missing:
        pip("download", "--dest", str(directory), *FITTING, *missing)
    # The project too: the service reads its version from it. Its code is taken from the tree.
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(directory), str(ROOT))
    for file in directory.glob("*.whl"):
        compress(file)


def compress(file: Path) -> None:
    """Compress a wheel with LZMA, in place; pip reads that as well."""
    packed = file.with_suffix(".packed")
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_LZMA) as new:
        if any(entry.compress_type == zipfile.ZIP_LZMA for entry in old.infolist()):
            packed.unlink()
            return
        for entry in old.infolist():
            content = old.read(entry)
            entry.compress_type = zipfile.ZIP_LZMA
            new.writestr(entry, content)
    packed.replace(file)


def install_dry(directory: Path) -> None:
    """Check with pip that the target Python accepts every wheel, without a package index."""
    with tempfile.TemporaryDirectory() as target:
        pip("install", "--dry-run", "--no-index", "--target", target, *FITTING,
            *map(str, sorted(directory.glob("*.whl"))))  # fmt: skip


def pip(*words: str) -> None:
    """Run pip."""
    command = [sys.executable, "-m", "pip", words[0], "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, *words[1:]], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"pip {words[0]} failed:\n{done.stderr.strip()[-2000:]}")


def wheel_requirements(file: Path) -> list[Requirement]:
    """Return the requirements of a wheel."""
    with zipfile.ZipFile(file) as archive:
        metadata = next(name for name in archive.namelist()
                        if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))  # fmt: skip
        lines = HeaderParser().parsestr(archive.read(metadata).decode("utf-8"))
    return [Requirement(line) for line in lines.get_all("Requires-Dist", [])]


def not_covered(carried: Mapping[str, tuple[str, Sequence[Requirement]]],
                present: Sequence[str], asked: Sequence[Requirement]) -> list[str]:  # fmt: skip
    """Return requirements of `asked`, transitively, that nothing meets.

    `carried` gives version and requirements of each wheel by name.
    """
    found: list[str] = []
    seen: set[tuple[str, str]] = set()
    todo = [("markscheme", needed, "") for needed in asked]
    while todo:
        who, needed, extra = todo.pop()
        if needed.marker is not None and not needed.marker.evaluate({**TARGET, "extra": extra}):
            continue
        name = canonicalize_name(needed.name)
        if name in present:
            continue
        if name not in carried:
            found.append(f"{who} needs {needed}, which is not carried")
            continue
        version, further = carried[name]
        if not needed.specifier.contains(version, prereleases=True):
            found.append(f"{who} needs {needed}, and {version} is carried")
        for wanted in ("", *needed.extras):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                todo += [(name, one, wanted) for one in further]
    return found


def carried_wheels(directory: Path) -> dict[str, tuple[str, Sequence[Requirement]]]:
    """Return version and requirements of each wheel in a folder, by name."""
    found: dict[str, tuple[str, Sequence[Requirement]]] = {}
    for file in directory.glob("*.whl"):
        name, version, *_ = parse_wheel_filename(file.name)
        found[name] = (str(version), wheel_requirements(file))
    return found


def tree_bytes() -> int:
    """Return the size of the working tree: tracked files, and others that are not ignored."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                            cwd=ROOT, capture_output=True, check=True).stdout  # fmt: skip
    files = (ROOT / name.decode() for name in listed.split(b"\0") if name)
    return sum(file.stat().st_size for file in files if file.is_file())


def main() -> None:
    """Collect and check the wheels."""
    parser = argparse.ArgumentParser(prog="python -m gpu.collect_wheels")
    parser.add_argument("directory", type=Path)
    directory: Path = parser.parse_args().directory
    download(directory)
    install_dry(directory)
    missing = not_covered(carried_wheels(directory), names("present.txt"), requirements())
    if missing:
        sys.exit("\n".join(missing))
    files = list(directory.glob("*.whl"))
    wheels, tree = sum(file.stat().st_size for file in files), tree_bytes()
    print(f"{len(files)} wheels for Python {TARGET['python_version']}, {wheels / MIB:.1f} MiB, and "
          f"the tree, {tree / MIB:.1f} MiB; the extras {' and '.join(EXTRAS)} are covered, with "
          f"{', '.join(names('present.txt'))} of the machine's own")  # fmt: skip
    if wheels + tree > MOST_MIB * MIB:
        sys.exit(f"that is more than {MOST_MIB} MiB: take something out of wheels.txt")


if __name__ == "__main__":
    main()
