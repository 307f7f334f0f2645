"""The integer model: conversion, running, saving and loading."""

from intact.engine.artifact import load, save
from intact.engine.convert import convert
from intact.engine.qmodel import QModel

__all__ = ["QModel", "convert", "load", "save"]
