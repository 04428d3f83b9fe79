"""The plugins that ship with Slim; each imports `slim.broker.plugin_api` and nothing else of ours."""
