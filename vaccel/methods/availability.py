"""Which methods work on a model: all of them on a described one, those of the outputs on any."""

from __future__ import annotations

#: What a method needs beside a model to call: its "blocks", the "embedding" of its timestep, a "small" model, or
#: weights of its own ("experts"); and what is left of it without the blocks; "" for nothing.
NEEDS: dict[str, tuple[tuple[str, ...], str]] = {
    "Auto": ((), ""),
    "Forecast": ((), ""),
    "EasyCache": ((), ""),
    "Schedule": (("blocks",), 'output level only: reuse="residual", "output" or "forecast"'),
    "LeMiCa": (("blocks",), 'output level only: reuse="residual", "output" or "forecast"'),
    "MixCache": (("blocks",), 'output level only: levels=("step", "cfg")'),
    "DirectionMagnitude": (("small",), ""),
    "SRDiffusion": (("small",), ""),
    "TeaCache": (("blocks", "embedding"), ""),
    "DualExpert": (("blocks", "experts"), ""),
}
WORKS = "works"


def available(*, blocks: bool, embedding: bool, trainable: bool = False) -> dict[str, str]:
    """Method -> "works", what of it does, or "not: " and why.

    Args:
        blocks: whether a family says where the model's blocks are.
        embedding: whether it says how to get the embedding of a timestep.
        trainable: whether it says what experts are distilled from.
    """
    found = {}
    for name, (needs, left) in NEEDS.items():
        if "blocks" in needs and not blocks:
            found[name] = left or "not: it needs the blocks of a model that a family describes"
        elif "embedding" in needs and not embedding:
            found[name] = "not: the family says nothing of the embedding of the timestep"
        elif "experts" in needs:
            found[name] = "works with experts (`vaccel distill`)" if trainable else "not: no experts can be distilled"
        else:
            found[name] = "works with small=..." if "small" in needs else WORKS
    return found


def outside_of_blocks() -> str:
    """What works on a model that is seen from outside, in words."""
    found = available(blocks=False, embedding=False)
    return ", ".join(
        name if said == WORKS else f"{name} ({said})" for name, said in found.items() if not said.startswith("not")
    )
