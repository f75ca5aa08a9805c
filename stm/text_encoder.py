"""The interface of a text encoder, whatever the model is and whatever store stands in front of it."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class TextEncoder(Protocol):
    """Whatever turns texts into vectors, such as `stm.encode.Encoder`."""

    def encode(self, texts: Sequence[str], prompt: str = "", description: str = "encode") -> Floats:
        """Return float32 unit rows [N, D] in the order of `texts`, each text after `prompt`."""
        ...
