"""Metrics of a slimd for Prometheus: a process of its own, which asks slimd as slimctl does.

A scraper that hangs, or asks for too much, is the exporter's trouble and never slimd's.
"""
