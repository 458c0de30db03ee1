"""Built-in masks of neurobench; each file is one plugin, loaded through its entry point."""
