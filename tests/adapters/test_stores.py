"""What belongs here: what ``serve`` says about a store that is missing, or not used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bridgecore.config import Config, Store, UpstreamUrl
from bridgecore.errors import ConfigError

if TYPE_CHECKING:
    from tests.conftest import Backend


class Unused:
    def ask(self, question: object, answered: object) -> None:
        raise AssertionError("it is not asked")


@pytest.mark.parametrize("store", list(Store))
def test_a_config_and_a_store_belong_together(backend: Backend, store: Store) -> None:
    config = Config(upstream=UpstreamUrl.parse("ws://up/"), store=store)
    passed = None if store is Store.DRIVER else Unused()

    async def body() -> None:
        with pytest.raises(ConfigError, match="store"):
            async with backend.serve(config, store=passed):
                raise AssertionError("it serves")

    backend.run(body)
