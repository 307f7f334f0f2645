"""The tests of intact."""
