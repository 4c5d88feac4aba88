#!/usr/bin/env python3
"""Makes what a GPU host without a network needs to run the fork, in parts of a given size.

    tools/offline_bundle.py --out dist/offline --have host.txt --size 55 --capability 9.0

``host.txt`` is the host's ``pip list --format=freeze``: what it names is not brought. Needs nvcc, and the
index for what is missing. Copy the folder to the host; there ``python3 install.py TARGET`` checks the parts
and unpacks them, and says what to add to PYTHONPATH. Benchmarks and tests are in ``TARGET/source``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import shutil
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from build_support import assemble, kernels, metadata
from build_support.errors import BuildError
from build_support.fatbin import keep_architecture
from build_support.host_wheels import canonical, fetch_missing, frozen_names
from build_support.overlay import copy_overlay
from build_support.paths import ROOT
from build_support.pin import load_pin
from build_support.progress import say

_NAME = "vllm-offline.tar.xz"
_SOURCES = ("benchmarks", "tests", "pyproject.toml")
_NOT_ON_HOPPER = (
    "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so",
    "vllm/_deepselect_C.abi3.so",
    "vllm/_flashkda_C.abi3.so",
    "vllm/_flashmla_*.so",
    "vllm/_qutlass_C.abi3.so",
    "vllm/third_party/deep_gemm",
    "vllm/third_party/flashmla",
    "vllm/third_party/fmha_sm100",
    "vllm/third_party/tml_fa4",
    "vllm/vllm-rs",
)
NOT_NEEDED = frozenset(
    {
        "fastsafetensors",
        "flashinfer-python",
        "humming-kernels",
        "instanttensor",
        "numba",
        "nvidia-cudnn-frontend",
        "nvidia-cutlass-dsl",
        "nvtx",
        "opencv-python-headless",
        "opentelemetry-exporter-otlp",
        "pynvvideocodec",
        "quack-kernels",
        "tilelang",
        "tokenspeed-mla",
        "torchaudio",
        "torchcodec",
        "torchvision",
    }
)
"""Requirements of upstream's, canonical names, that no text model on a Hopper GPU imports: decoders of sound,
pictures and video, kernels for other attention and other GPUs, faster loaders, the export of traces. They are
nine tenths of what a host lacks. ``tests/build`` imports the fork without them."""
_INSTALL = '''#!/usr/bin/env python3
"""Checks the parts beside this file and unpacks them: python3 install.py TARGET"""

import hashlib
import io
import json
import lzma
import sys
import tarfile
from pathlib import Path

here = Path(__file__).resolve().parent
about = json.loads((here / "bundle.json").read_text())
if len(sys.argv) != 2:
    sys.exit("usage: python3 install.py TARGET")
if "%d.%d" % sys.version_info[:2] != about["python"]:
    sys.exit("error: this bundle is for Python " + about["python"])


class Parts(io.RawIOBase):
    """The parts, one after the other, checked as they are read."""

    def __init__(self):
        self.left, self.file = list(about["parts"].items()), None

    def readable(self):
        return True

    def readinto(self, buffer):
        while True:
            if self.file is None:
                if not self.left:
                    return 0
                name, digest = self.left.pop(0)
                content = (here / name).read_bytes()
                if hashlib.sha256(content).hexdigest() != digest:
                    sys.exit("error: %s is damaged; copy it again" % name)
                self.file = io.BytesIO(content)
            count = self.file.readinto(buffer)
            if count:
                return count
            self.file = None


target = Path(sys.argv[1]).resolve()
target.mkdir(parents=True, exist_ok=True)
with lzma.open(io.BufferedReader(Parts())) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
    archive.extractall(target, filter="data")
print("unpacked. For programs that use it:")
print("  export PYTHONPATH=%s VLLM_USE_FLASHINFER_SAMPLER=0" % (target / "site"))
print("  cd %s && python3 -m benchmarks.gpu.blocks --help" % (target / "source"))
'''


def fill_site(site: Path, capability: str | None, everything: bool) -> None:
    """Put the fork for CUDA, with kernels and metadata, into ``site``.

    Args:
        site: the folder, which is made.
        capability: keep GPU code for this compute capability alone; None: all.
        everything: keep also what upstream needs on no Hopper GPU.
    """
    pin = load_pin(ROOT)
    with tempfile.TemporaryDirectory(prefix="bundle-") as scratch:
        tree = Path(scratch) / "tree"
        assemble.assemble(ROOT, pin, "cuda", tree)
        copy_overlay(ROOT, tree)
        kernels.build_kernels(ROOT, "cuda", ROOT / "build" / "kernels-cuda", tree, True)
        for pattern in () if everything else _NOT_ON_HOPPER:
            for path in tree.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.move(tree / "vllm", site / "vllm")
    info = site / metadata.dist_info(pin, "cuda")
    for name, content in metadata.dist_info_files(ROOT, pin, "cuda").items():
        (info / name).parent.mkdir(parents=True, exist_ok=True)
        (info / name).write_bytes(content)
    for path in sorted(site.rglob("*.so")) if capability else []:
        kept, blanked = keep_architecture(path, round(float(capability or 0) * 10))
        if blanked:
            say(f"{path.name}: {kept / 1e6:.0f} MB of GPU code kept, {blanked / 1e6:.0f} MB left out")


def add_wheels(site: Path, folder: Path) -> None:
    """Unpack wheels into ``site``; what pip would put elsewhere (scripts, data) stays out."""
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for info in archive.infolist():
                first, _, rest = info.filename.partition("/")
                if first.endswith(".data"):
                    kind, _, rest = rest.partition("/")
                    if kind not in ("purelib", "platlib") or not rest:
                        continue
                    info.filename = rest
                archive.extract(info, site)


def write_parts(content: Path, out: Path, size: int | None, preset: int) -> dict[str, str]:
    """Pack a folder and split it; return part -> sha256."""
    packed = out / _NAME
    with lzma.open(packed, "wb", preset=preset) as stream, tarfile.open(fileobj=stream, mode="w|") as archive:
        for path in sorted(content.iterdir()):
            archive.add(path, path.name, filter=lambda i: None if "__pycache__" in i.name else i)
    parts: dict[str, str] = {}
    with packed.open("rb") as whole:
        while chunk := whole.read(size or -1):
            name = f"{_NAME}.{len(parts) + 1:03d}"
            (out / name).write_bytes(chunk)
            parts[name] = hashlib.sha256(chunk).hexdigest()
    packed.unlink()
    return parts


def main() -> int:
    """Make a bundle."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist" / "offline")
    parser.add_argument("--have", type=Path, help="the host's pip list --format=freeze; default: bring all")
    parser.add_argument("--python", default="3.12", help="the host's Python (%(default)s)")
    parser.add_argument("--size", type=float, help="largest part, in MB; default: one part")
    parser.add_argument("--capability", help="keep GPU code for this compute capability alone, as 9.0")
    parser.add_argument("--all-objects", action="store_true", help="keep what no Hopper GPU needs")
    parser.add_argument(
        "--all-wheels", action="store_true", help="bring what no text model on a Hopper GPU imports"
    )
    parser.add_argument("--without", nargs="*", default=[], metavar="NAME", help="projects not to bring")
    parser.add_argument(
        "--without-sources", action="store_true", help="no benchmarks and tests: the host has the repository"
    )
    parser.add_argument("--preset", type=int, default=6, choices=range(10), help="xz preset (%(default)s)")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    for stale in chosen.out.glob(f"{_NAME}*"):
        stale.unlink()
    present = frozen_names(chosen.have.read_text("utf-8")) if chosen.have else set()
    without = {canonical(name) for name in chosen.without} | (set() if chosen.all_wheels else NOT_NEEDED)
    try:
        with tempfile.TemporaryDirectory(prefix="bundle-", dir=chosen.out) as scratch:
            content, wheels = Path(scratch) / "content", Path(scratch) / "wheels"
            (content / "site").mkdir(parents=True)
            wheels.mkdir()
            needs = load_pin(ROOT).requirements["cuda"]
            names = fetch_missing(needs, present, chosen.python, wheels, without)
            fill_site(content / "site", chosen.capability, chosen.all_objects)
            add_wheels(content / "site", wheels)
            for name in () if chosen.without_sources else _SOURCES:
                source, target = ROOT / name, content / "source" / name
                target.parent.mkdir(exist_ok=True)
                shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
            size = round(chosen.size * 1e6) if chosen.size else None
            parts = write_parts(content, chosen.out, size, chosen.preset)
    except BuildError as error:
        say(f"error: {error}")
        return 1
    about = {
        "vllm": load_pin(ROOT).fork_version("cuda"),
        "python": chosen.python,
        "wheels": names,
        "parts": parts,
    }
    (chosen.out / "bundle.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    (chosen.out / "install.py").write_text(_INSTALL, encoding="utf-8")
    total = sum((chosen.out / name).stat().st_size for name in parts)
    say(f"{len(parts)} parts, {total / 1e6:.0f} MB, {len(names)} wheels: {chosen.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
