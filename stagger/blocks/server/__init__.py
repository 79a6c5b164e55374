"""The life of one block server: claim, load, serve, move, drain, leave."""
