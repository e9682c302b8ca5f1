"""The kinds of clients in a run: how each sends its conversation, and its habits.

The models (docs, "Protocol notes"):

* *incremental*: the id of the latest response and new items only. It repeats the same body after a
  502, 503, 504, 429 or a stream that broke off; after 400 ``previous_response_not_found`` it drops
  the id and sends its whole history;
* *full history*: ``store: false`` and the whole history each time, never an id; *terse*: the same
  in its own wording, with the content only. Tools whose calls arrived before a stream broke off
  were run, so the next try's history has grown by the calls and their outputs;
* *impatient*: it leaves in mid-turn now and then, and tries again;
* *slow reader*: it reads a little, then nothing for a while;
* *parallel*: its model calls several tools at once;
* *warm*: it sends requests with ``generate: false`` now and then;
* *sharing*: it shares its keys with a neighbour, and continues the neighbour's conversation now
  and then;
* *probing*: it names a response of another credential, then one that does not exist, and compares
  the answers.
"""

from __future__ import annotations

from typing import Final

import attrs


@attrs.frozen
class Profile:
    """The habits of a client. ``anchored``: it sends ``previous_response_id`` and new
    items only."""

    name: str
    anchored: bool = True
    store: bool = True
    stream: bool = True
    impatient: bool = False
    slow: bool = False
    branches: bool = False  # it continues an older response now and then
    terse: bool = False
    parallel: bool = False
    warm: bool = False
    shares: bool = False
    probing: bool = False


# Clients 2n and 2n + 1 share a credential, and, with ``shares``, their keys.
PROFILES: Final = (
    Profile("incremental", branches=True),
    Profile("incremental, store=false", store=False, branches=True),
    Profile("full history", anchored=False, store=False, warm=True, shares=True),
    Profile("terse full history", anchored=False, store=False, terse=True, shares=True),
    Profile("impatient", impatient=True, parallel=True),
    Profile("slow reader", slow=True),
    Profile("incremental, JSON", stream=False, warm=True),
    Profile("impatient, store=false", store=False, impatient=True),
    Profile("impatient full history", anchored=False, store=False, impatient=True, parallel=True),
    Profile("probing", store=False, probing=True),
    Profile("tools, store=false", store=False, parallel=True, warm=True, shares=True),
    Profile("forks, store=false", store=False, branches=True, shares=True),
)
"""The profiles of a run that names no others; they take turns."""
