"""Applied objects are sent as text that is both JSON and YAML: the API server reads it as YAML."""

from __future__ import annotations

import yaml
from hypothesis import given
from hypothesis import strategies as st

from workqueue_operator.kube.client import _yaml

TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["😀", "\\ud83d\\ude00", "\\😀\\", "\x00\x7f"]
)
# YAML limits a key to 1,024 characters. The longest applied key (label, annotation, field name) is half as long.
KEYS = TEXTS.filter(lambda text: len(text) <= 64)


@given(
    st.recursive(
        TEXTS | st.integers() | st.booleans(), lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner)
    )
)
def test_every_string_survives_yaml_round_trip(body: object) -> None:
    assert yaml.safe_load(_yaml(body)) == body
