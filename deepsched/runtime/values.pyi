from typing import Any

import numpy as np

class ValueInfo:
    """What one input or output of a model is."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def shape(self) -> tuple[int | str | None, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def content(self) -> ValueInfo | None: ...
