"""How the engine attaches to other libraries."""
