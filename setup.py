"""With LORSA_BUILD_KERNELS=1 the wheel carries the kernels, compiled for this machine and torch; else it is pure.

LORSA_BUILD_KERNELS=1 pip install --no-build-isolation .
"""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

WANTED = os.environ.get("LORSA_BUILD_KERNELS", "0") not in ("", "0")


class BuildPy(build_py):
    """Copy the package; then the copy builds its kernels."""

    def run(self) -> None:
        """Run the command."""
        super().run()
        if not WANTED:
            return
        if self.editable_mode:
            raise SystemExit("An editable install takes its kernels from the cache: make kernels")
        command = [sys.executable, "-m", "lorsa.kernels.build", "--copy-to", f"{self.build_lib}/lorsa/kernels/built"]
        environment = os.environ | {"PYTHONPATH": str(Path(self.build_lib).resolve())}
        if subprocess.run(command, env=environment).returncode:
            raise SystemExit("LORSA_BUILD_KERNELS=1: no kernels (see above); torch must be there: --no-build-isolation")


class Platform(Distribution):
    """A distribution whose wheel is for this platform alone."""

    def has_ext_modules(self) -> bool:
        """Say that it is not pure."""
        return True


setup(cmdclass={"build_py": BuildPy}, distclass=Platform if WANTED else Distribution)
