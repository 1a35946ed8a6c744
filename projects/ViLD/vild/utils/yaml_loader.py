"""Parse yaml, refusing repeated keys."""

from __future__ import annotations

from typing import Any

import yaml


class _UniqueKeyLoader(yaml.SafeLoader):
    """A loader that raises for repeated keys, where yaml would keep the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a dict; see PyYAML.

        Raises:
            yaml.constructor.ConstructorError: a key occurs twice.
        """
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} occurs more than once", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: object) -> Any:
    """Parse a yaml of plain values.

    Args:
        text: the yaml.
        where: its file, for the error message.

    Raises:
        ValueError: invalid yaml, or a repeated key.
    """
    try:
        return yaml.load(text, _UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: impossible dates
        reason = " ".join(str(error).split())  # yaml errors span several lines
        raise ValueError(f"{where} is not valid yaml: {reason}") from None
