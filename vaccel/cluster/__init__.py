"""Many machines: a command's clips or samples by workers on a Ray cluster, each with one pipeline.

``messages`` is all that is sent, as bytes; ``worker`` is the class that runs over there, with ``clips`` and ``units``
for what it does; ``crew`` hands out tasks and has never heard of Ray, which is ``actors`` alone; ``making`` and
``recording`` are the driver's side, which alone writes files.
"""
