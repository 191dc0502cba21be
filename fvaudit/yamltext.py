"""YAML texts in which every key stands once; nothing in one is executed."""

from typing import Any

import yaml


def load(text: str) -> Any:
    """What a text holds, as `yaml.safe_load` reads it (JSON is YAML).

    Raises:
        yaml.YAMLError: if it is not YAML, or a key stands twice.
        RecursionError: if it is nested too deeply.
    """
    return yaml.load(text, _Once)  # a SafeLoader


class _Once(yaml.SafeLoader):
    """Refuses a key that stands twice; YAML's own loader silently keeps the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        seen: set[str] = set()
        for key in keys:
            if key.value in seen and key.value != "<<":
                problem = f"the key {key.value!r} stands twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return node
