"""What a frozen program needs of deepsched beside what import statements name.

PyInstaller runs this file where a program imports deepsched.
"""

import pkgutil

import deepsched
from deepsched.runtime.library import find_library

# Names of the root package and subcommands are imported by name, as is ml_dtypes, if it is there.
hiddenimports = [
    *(module.name for module in pkgutil.walk_packages(deepsched.__path__, "deepsched.")),
    "ml_dtypes",
]
# The Python package need not be imported, but its library is opened from its folder.
binaries = [(find_library(), "onnxruntime/capi")]
# Whoever uses these through deepsched imports them; where they are merely installed, a program
# would grow by hundreds of megabytes.
excludedimports = ["matplotlib", "openvino", "ray"]
