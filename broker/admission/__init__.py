"""Admission: how the accepting host knows which flow a host connection belongs to."""
