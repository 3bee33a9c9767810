"""Rivals of Forecast: other libraries' caches (``contenders``), and methods of 2026 written as plain loops.

One short file a method, from its paper and, where there is one, its release: ``spectrum``, ``dpcache``, ``meancache``,
``l2p``, ``easycache``, ``budcache``, ``seacache``, ``taylorseer``.  All run in ``loop.Loop``, a pipeline's own loop;
``settings`` lists what each is tuned over.  ``bench/measure_rivals.py`` measures them.
"""
