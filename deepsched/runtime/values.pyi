from typing import Any

import numpy as np

class ValueInfo:
    """Name, kind, shape and dtype of one input or output of a model."""

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
