"""A yaml loader that refuses repeated keys."""

from __future__ import annotations

from typing import Any

import yaml


class UniqueKeyLoader(yaml.SafeLoader):
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
