"""A check that all processes of a job use the same configuration."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.utils import comm

# this path may differ between machines
_OWN = ("OUTPUT_DIR",)


def require_same_config(cfg: CfgNode) -> None:
    """Check that all processes use the same configuration.

    Raises:
        ValueError: on every process, if any differs; the message lists the keys.
    """
    own = {key: value for key, value in _flat(cfg).items() if key not in _OWN}
    every = comm.all_gather(own)
    first = every[0]
    for rank, other in enumerate(every):
        keys = sorted(k for k in first.keys() | other.keys() if first.get(k) != other.get(k))
        if keys:
            shown = "; ".join(f"{k}: {first.get(k)} and {other.get(k)}" for k in keys[:5])
            raise ValueError(
                f"the configurations of processes 0 and {rank} differ ({shown}): start every "
                "machine with the same --config-file and overrides"
            )


def _flat(node: CfgNode, prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in node.items():
        if isinstance(value, CfgNode):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = repr(value)
    return found
