"""buildah's store after an interrupted build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hack.cluster import images
from hack.cluster.errors import ClusterError

SAID = 'Error: locating item named "manifest" for image with ID "cb93" (consider removing the image): no such file'


@pytest.mark.parametrize(("said", "advises"), [(SAID, True), ("Error: no space left on device", False)])
def test_incomplete_image_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, *, advises: bool
) -> None:
    def fail(*_: Any, doing: str, **__: Any) -> str:
        raise ClusterError(f"{doing} failed: {said}")

    monkeypatch.setattr(images, "run", fail)
    monkeypatch.setattr(images, "cache_folder", lambda: tmp_path)

    with pytest.raises(ClusterError) as failure:
        images.is_in_store("jobs:1")

    assert said in str(failure.value)
    assert (f"Remove {tmp_path / 'containers'}, and repeat" in str(failure.value)) is advises
