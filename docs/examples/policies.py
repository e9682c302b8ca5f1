"""A policy with one cell of its own: it sends a turn again that the upstream may be running."""

import attrs

from bridgecore import DEFAULT, Action, FailureReply, Remedy, Situation, Standing

careless = attrs.evolve(
    DEFAULT.with_cell(
        Situation.LOST_SENT,
        Standing.HELD,
        Remedy(Action.RESEND, FailureReply.STREAM_INCOMPLETE),
    ),
    name="careless",
)
