"""The demonstration: four unmodified programs over host, overlay and Slim, side by side."""
