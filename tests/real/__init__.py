"""Tests on trained networks and real data."""
