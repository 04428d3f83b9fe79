"""The plugins that ship with Slim. Of ours, each imports `slim.broker.plugin_api` only."""
