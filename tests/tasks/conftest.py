"""A hub on loopback that this process asks instead of the real one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hub import Hub


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """An empty hub, and an empty cache."""
    import datasets
    from huggingface_hub import constants
    from huggingface_hub.file_download import hf_hub_url  # noqa: F401 - reads the constants when it is called

    from pipeline.files.hub import _commit

    cache = tmp_path_factory.mktemp("hub")
    with Hub() as made, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", made.address)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", made.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        patch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
        patch.setattr(datasets.config, "HF_ENDPOINT", made.address)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
        _commit.cache_clear()
        yield made
        _commit.cache_clear()
