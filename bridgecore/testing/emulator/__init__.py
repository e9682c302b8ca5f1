"""An emulator of the upstream: a Responses WebSocket-mode service as a machine without sockets.

What belongs here: how such a service behaves (lanes, continuation cache, storage, limits, errors)
and what it answers. The values with which a test scripts it are next door: answers in
``bridgecore.testing.answers``, faults in ``bridgecore.testing.faults``.

Everything that it sends follows from its settings and its input: there is no randomness, and times
come from ``now``.

The modules, from the top; each imports only from those below it:

* ``service``: ``Emulator``, the machine: connections, create frames, lanes, and the running of
  turns;
* ``injection``: when a fault strikes a create frame, and how each kind of fault is carried out;
* ``connection``: one connection: what is to be written, its turns, how it ends, its deadlines;
* ``api``: the answers to requests over HTTP;
* ``events``: the answer to a turn, written as events of the API;
* ``turns``: a turn, its result, and what is still to be sent for it;
* ``context``: which responses and items the service knows, and a create frame read against them;
* ``conversations``: the items that are kept under an id, for turns that name it;
* ``resource``: the response object, and the settings that are refused;
* ``errors``: errors as frames and as HTTP answers, in every shape that services use;
* ``jsontext``: reading and writing JSON.

Internal: import ``Emulator``, ``Outcome`` and ``Turn`` from ``bridgecore.testing``.
"""

from bridgecore.testing.emulator.injection import is_met
from bridgecore.testing.emulator.service import MAX_IN_FLIGHT, MAX_LANES, Emulator
from bridgecore.testing.emulator.turns import Outcome, Turn

__all__ = ["MAX_IN_FLIGHT", "MAX_LANES", "Emulator", "Outcome", "Turn", "is_met"]
