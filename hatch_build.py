"""Builds the optional native kernels when plait is installed, editable or not."""

import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeKernels(BuildHookInterface):
    """Compiles the library into the source tree; a wheel that holds one is for this platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build, or say in a line why not: plait works without."""
        native = Path(self.root) / "src/plait/kernels/native"
        module = runpy.run_path(str(native / "build.py"))
        try:
            self.app.display_info(module["build"]())
        except RuntimeError as error:
            self.app.display_warning(f"no native kernels: {error}")
        if any(native.glob("*.so")):
            build_data["pure_python"] = False
            build_data["infer_tag"] = True
