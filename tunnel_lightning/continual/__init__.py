"""Sequences of tasks with any Avalanche strategy, measured in every layer; the only room that knows Avalanche."""
