"""Tests of intact.observers."""
