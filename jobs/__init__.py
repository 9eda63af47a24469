"""The jobs of `herd`, a module each. What the project itself warns of is printed without its place in the code."""

import warnings
from typing import Any

_with_place = warnings.formatwarning


def _format(message: Any, category: type[Warning], *place: Any) -> str:
    is_own = category.__module__.startswith("gpt_core.")
    return f"{message}\n" if is_own else _with_place(message, category, *place)


warnings.formatwarning = _format
