"""``bridgecore demo``: the same client behind three bridges, whose upstream loses its connections.

The modules; what is measured is separate from how it is shown, and both from the sockets:

* ``command``: the flags' values, the order of things, the files that are written;
* ``stage``: the upstream, the bridges and the clients, over real sockets in one process;
* ``view``: what is shown while it runs: a table and a plot in a terminal, lines otherwise;
* ``page``: the results as an HTML page;
* ``timeline``: what happened in one turn, as a sequence diagram;
* ``chart``: the plot in characters;
* ``story``: the results as rows of a table and as four sentences.
"""
